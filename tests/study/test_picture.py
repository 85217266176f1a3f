"""The picture of a comparison: nothing overlaps or is cut off, and every arm has its own colour."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from jaxtrain.config import Config
from jaxtrain.runs.metric import Metric
from jaxtrain.study.comparison import Arm, Comparison
from jaxtrain.study.pairs import pairs_of
from jaxtrain.study.picture import colours_of, figure_of
from jaxtrain.study.stats import share_interval
from jaxtrain.study.verdict import Question, verdict
from jaxtrain.weights import bundle
from tests.conftest import TINY

ACCURACY = Metric('accuracy', higher_is_better=True, percent=True)
LONG = 'finetune_with_layerwise_learning_rates_and_gradual_unfreezing_{}'


@pytest.fixture(scope='module')
def cfg() -> Config:
    from jaxtrain.config.files import load

    return bundle.resolve(load(f'{TINY}:scratch', []), None)


def comparison(names: list[str], costs: list[float]) -> Comparison:
    rng = np.random.default_rng(0)
    scores = {name: (rng.random((3, 60)) < 0.9) * 1.0 for name in names}
    sizes = dict.fromkeys(
        ('params_total', 'params_trainable', 'opt_state_bytes', 'examples_seen'), 9
    )
    rows = [
        Arm(
            name=name, data='digits', init='random', seeds=3, flops=cost, seconds=1.0,
            score=share_interval(scores[name]), by_seed=tuple(scores[name].mean(1)), **sizes,
        )
        for name, cost in zip(names, costs, strict=True)
    ]  # fmt: skip
    by_arm = dict(zip(names, costs, strict=True))
    question = Question(ACCURACY, 0.01, by_arm, pairs_of(scores, ACCURACY), 3, 60)
    runs = {name: [Path(name)] for name in names}
    baselines = {'majority': 0.102, 'chance': 0.1}
    return Comparison('c.py', rows, runs, question, verdict(question), baselines, [])


@pytest.mark.parametrize(
    ('count', 'name', 'cost'),
    [(2, 'a{}', 1e11), (6, 'arm {}', 2.555e6), (10, LONG, 1.2345e19), (3, 'b{}', 9.876e12)],
)
def test_no_text_overlaps_or_is_cut_off(cfg, count, name, cost):
    names = [name.format(i) for i in range(count)]
    figure = figure_of(comparison(names, [cost + i for i in range(count)]), cfg, 'digits, ' * 30)
    figure.draw_without_rendering()
    scores, costs = figure.subfigs[0].axes
    texts = [*scores.get_yticklabels(), *costs.texts]
    for axes in (scores, costs):
        (low, high), ticks = axes.get_xlim(), axes.get_xticks()
        labels = zip(ticks, axes.get_xticklabels(), strict=True)
        texts += [text for tick, text in labels if low <= tick <= high]
    texts += [scores.xaxis.label, costs.xaxis.label, figure.subfigs[0]._suptitle]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) > 2 * count
    for a, b in combinations(boxes, 2):
        assert not a.overlaps(b)
    width, height = figure.bbox.size
    assert all(text.get_window_extent().x1 <= costs.bbox.x1 for text in costs.texts)
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    shown = [label.get_text().replace('\n', '') for label in scores.get_yticklabels()]
    assert all(text.startswith(name) for text, name in zip(shown, names, strict=True))


def test_each_arm_is_drawn_at_its_own_cost_and_score(cfg):
    names, costs = ['a', 'b', 'c'], [1e11, 1e11, 3e10]
    made = comparison(names, costs)
    scores, bars = figure_of(made, cfg, 'digits').subfigs[0].axes
    assert [bar.get_width() for bar in bars.patches] == [100, 100, 30]
    means = [100 * arm.score.mean for arm in made.arms]
    drawn = [c.lines[0].get_xdata()[0] for c in scores.containers]
    assert drawn == pytest.approx(means)
    lines = {line.get_label(): line.get_xdata()[0] for line in scores.lines}
    assert lines['majority 10.2%'] == pytest.approx(10.2) and lines['chance 10.0%'] == 10.0
    title = figure_of(made, cfg, 'digits').subfigs[0]._suptitle.get_text()
    assert 'digits' in title and '3 arms x 3 paired seeds = 9 runs' in title and '95%' in title


@pytest.mark.parametrize('count', [2, 6, 10, 15])
def test_no_two_arms_have_the_same_colour(count):
    colours = np.array([to_rgb(colour) for colour in colours_of(count)])
    distances = [abs(a - b).max() for a, b in combinations(colours, 2)]
    assert len(colours) == count and min(distances) > 0.05
