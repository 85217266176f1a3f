"""The picture of a comparison: a row per arm, with its score and its cost."""

import io
import textwrap
from typing import Any

import numpy as np

from jaxtrain.config import Config
from jaxtrain.data.features import ARRAYS, CLASS, IMAGE
from jaxtrain.data.sources.open import open_source
from jaxtrain.data.sources.source import BLOCK, Source
from jaxtrain.study.baselines import labels_of
from jaxtrain.study.comparison import Comparison
from jaxtrain.terminal import number

COLOURS = (
    '#4c78a8', '#e45756', '#54a24b', '#b279a2', '#f58518',
    '#72b7b2', '#8c6d1f', '#ff9da6', '#1f3d7a', '#79706e',
)  # fmt: skip

# Number of example images in the picture.
STRIP = 16
WIDTH = 8.0  # inches
LINE = 0.17  # inches that a line of a label takes


def draw(comparison: Comparison, cfg: Config, setting: str) -> bytes:
    """Draws compare.png. Args as in `figure_of`."""
    buffer = io.BytesIO()
    figure_of(comparison, cfg, setting).savefig(buffer, format='png', dpi=130)
    return buffer.getvalue()


def figure_of(comparison: Comparison, cfg: Config, setting: str) -> Any:
    """The figure of a comparison.

    Each arm has a row of its own, so that no label or mark overlaps another, however close their
    costs and scores are.

    Args:
      comparison: the comparison.
      cfg: the config of an arm, for images of its training data.
      setting: the data and its amount in words.

    Returns:
      A matplotlib Figure.
    """
    from matplotlib.figure import Figure

    arms, question = comparison.arms, comparison.question
    source = open_source(cfg.data, cfg.data.train, 'config.data.train', cfg.data.limit)
    shows = source.model_input.meaning == IMAGE and ARRAYS[CLASS] in source.features
    labels = [_label(arm.name, _text(comparison, arm.score.mean)) for arm in arms]
    row = LINE * (1.5 + max(label.count('\n') + 1 for label in labels))
    heights = (1.9 + row * len(arms), 0.9)
    figure = Figure(figsize=(WIDTH, sum(heights[: 1 + shows])), layout='constrained', facecolor='w')
    parts: Any = figure.subfigures(2, 1, height_ratios=heights) if shows else (figure, None)
    scores, costs = parts[0].subplots(1, 2, sharey=True, width_ratios=(3, 1))
    _draw_scores(scores, comparison)
    scores.set_yticks(range(len(arms)), labels, fontsize=9)
    _draw_costs(costs, comparison)
    title = (
        f'{len(arms)} arms x {question.seeds} paired seeds = '
        f'{len(arms) * question.seeds} runs, {question.examples:,} test examples, 95% intervals'
    )
    parts[0].suptitle(f'{textwrap.fill(setting, 96)}\n{title}', fontsize=10)
    if comparison.baselines:
        parts[0].legend(loc='outside lower center', ncols=2, frameon=False, fontsize=9)
    if shows:
        _draw_examples(parts[1], source)
    return figure


def colours_of(count: int) -> list[Any]:
    """A colour for each arm, no two of them equal."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps

    return list(colormaps['turbo'](np.linspace(0, 1, count)))


def _draw_scores(axes, comparison: Comparison) -> None:
    metric, arms = comparison.metric, comparison.arms
    factor = 100 if metric.percent else 1
    for place, (arm, colour) in enumerate(zip(arms, colours_of(len(arms)), strict=True)):
        mean, low, high = (factor * x for x in (arm.score.mean, arm.score.low, arm.score.high))
        seeds = place + np.linspace(-0.18, 0.18, arm.seeds + 2)[1:-1]
        axes.plot(factor * np.array(arm.by_seed), seeds, 'o', color=colour, alpha=0.4, ms=4)
        bars = [[mean - low], [high - mean]]
        axes.errorbar([mean], [place], xerr=bars, fmt='|', color=colour, ms=14, mew=2, capsize=4)
    for (name, score), style in zip(comparison.baselines.items(), ('--', ':'), strict=False):
        text = f'{name} {_text(comparison, score)}'
        axes.axvline(factor * score, ls=style, color='0.4', lw=1.2, label=text)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel(f'test {metric.name}' + (' (%)' if metric.percent else ''))
    axes.grid(alpha=0.3)


def _label(name: str, score: str) -> str:
    """The name of an arm, on as many lines as it needs, above its score."""
    lines = textwrap.wrap(name.replace('_', '_ '), 28)
    return '\n'.join([*(line.replace('_ ', '_') for line in lines), score])


def _text(comparison: Comparison, score: float) -> str:
    return comparison.metric.text(score) + ('%' if comparison.metric.percent else '')


def _draw_costs(axes, comparison: Comparison) -> None:
    arms = comparison.arms
    costs = [arm.flops / 1e9 for arm in arms]
    bars = axes.barh(range(len(arms)), costs, color=colours_of(len(arms)), height=0.5)
    texts = [number(cost) for cost in costs]
    axes.bar_label(bars, texts, padding=3, fontsize=9)
    # Room for the labels beside the bars.
    axes.set_xlim(0, (1.2 + 0.1 * max(map(len, texts))) * max(costs))
    axes.set_xlabel('training cost per run\n(GFLOP)')
    axes.tick_params(left=False, labelleft=False)
    axes.locator_params(axis='x', nbins=2)
    axes.xaxis.set_major_formatter('{x:g}')
    axes.grid(alpha=0.3, axis='x')
    axes.set_axisbelow(True)


def _draw_examples(figure, source: Source) -> None:
    """Draws a strip of images, one of each of the first classes."""
    strip = source.fetch(_one_per_class(source))
    images, labels = strip[source.inputs], strip[ARRAYS[CLASS]]
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        tile = figure.add_subplot(1, len(labels), place + 1)
        tile.imshow(image.squeeze(), cmap='gray', vmin=0, vmax=255)
        tile.set_title(textwrap.shorten(source.classes[label], 8, placeholder='..'), fontsize=9)
        tile.axis('off')


def _one_per_class(source: Source) -> np.ndarray:
    """Indices of the first example of each of the first classes."""
    labels = labels_of(source, BLOCK)
    classes = np.unique(labels)[:STRIP]
    return np.array([np.flatnonzero(labels == c)[0] for c in classes])
