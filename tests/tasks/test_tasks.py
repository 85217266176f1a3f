"""What every task declares, whichever of the table it is, and how a config chooses among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.config import Config, base
from jaxtrain.data.features import ARRAYS, CLASS, NEXT_TOKENS
from jaxtrain.errors import UserError
from jaxtrain.runs.metric import best_of
from jaxtrain.tasks.task import WEIGHT, totals
from jaxtrain.tasks.tasks import TASKS, best_metric
from jaxtrain.weights.bundle import resolve
from tests.tasks.made import images, make, texts

every_task = pytest.mark.parametrize('name', TASKS)


def given(name: str):
    """A source that the task takes, its model's outputs for six examples, and their batch."""
    rng, task = np.random.default_rng(0), TASKS[name]
    classes = ('a', 'b') if name == 'binary' else ('a', 'b', 'c')
    source = {CLASS: images(classes), NEXT_TOKENS: texts()}[task.label]
    shape = source.shape if task.label == NEXT_TOKENS else ()
    logits = rng.normal(0, 3, (6, *shape, task.outputs(source))).astype(np.float32)
    least = -1 if task.label == NEXT_TOKENS else 0
    labels = rng.integers(least, 2, (6, *shape)).astype(np.int32)
    return source, jnp.asarray(logits), {ARRAYS[task.label]: labels}


@every_task
def test_the_main_metric_and_the_loss_are_among_the_metrics(name):
    task = TASKS[name]
    names = [metric.name for metric in task.metrics]
    assert task.main in names and 'loss' in names and len({*names}) == len(names)
    assert task.metric(task.main).name == task.main
    assert not task.metric('loss').higher_is_better
    assert TASKS['classify'].metric('accuracy').higher_is_better
    # A metric that tables show in percent is a share, of which more is better in all of them.
    assert all(metric.higher_is_better for metric in task.metrics if metric.percent)


@every_task
def test_values_are_finite_floats_of_each_example_with_a_loss_that_has_a_gradient(name):
    source, logits, batch = given(name)
    task = TASKS[name]
    values = task.values(logits, batch, task.smoothing or 0.0)
    assert {(v.shape, v.dtype.name) for v in values.values()} == {((6,), 'float32')}
    assert all(np.isfinite(v).all() for v in values.values())
    gradient = jax.grad(lambda x: totals(task.values(x, batch, 0.0))['loss'])(logits)
    assert gradient.shape == logits.shape and bool((gradient != 0).any())


@every_task
def test_metrics_of_a_split_come_from_its_rows_alone(name):
    """Whatever the batches were, and by the names that are declared."""
    source, logits, batch = given(name)
    task = TASKS[name]
    label = ARRAYS[task.label]
    halves = [
        task.rows(logits[part], {label: batch[label][part]}) for part in (slice(0, 2), slice(2, 6))
    ]
    rows = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
    whole = {name: np.asarray(row) for name, row in task.rows(logits, batch).items()}
    found = task.summarize(rows)
    assert found == pytest.approx(task.summarize(whole), rel=1e-6)
    assert {*found} == {metric.name for metric in task.metrics}
    for metric in task.metrics:
        if metric.is_mean:
            mean = np.average(rows[metric.name], weights=rows.get(WEIGHT))
            assert found[metric.name] == pytest.approx(mean, rel=1e-6)


@every_task
def test_a_prediction_has_the_columns_that_are_shown(name):
    source, logits, _ = given(name)
    prediction = TASKS[name].prediction
    if prediction is None:  # a prompt is continued
        assert source.tokenizer
        return
    arrays = prediction.arrays(logits)
    line = prediction.line({k: np.asarray(v[0]) for k, v in arrays.items()}, source.classes, 2)
    assert all(len(array) == 6 for array in arrays.values())
    assert prediction.columns and {*prediction.columns} <= {*line}


@every_task
def test_only_data_with_its_labels_is_taken(name):
    source, *_ = given(name)
    other = images() if source.tokenizer else texts()
    words = f'config.task.name={name!r} does not fit data of config.data.source='
    settings = {'data__tokenizer': 'bytes', 'data__source': 'corpus'}
    label = ARRAYS[make(source, task__name=name, **settings).label]
    assert source.features[label].meaning == TASKS[name].label
    with pytest.raises(UserError) as caught:
        make(other, task__name=name, **settings)
    assert words in str(caught.value)
    fit = "'classify' or 'binary'" if other.classes else "'lm'"
    assert str(caught.value).endswith(f'set it to {fit}')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'task__label_smoothing': -0.1}, ['config.task.label_smoothing=-0.1', 'between 0 and 1']),
        ({'task__label_smoothing': 1.1}, ['config.task.label_smoothing=1.1', 'between 0 and 1']),
        ({'task__name': 'classfy'}, ["config.task.name='classfy'", "'classify'"]),
    ],
)
def test_what_is_refused(changes, words):
    with pytest.raises(UserError) as caught:
        make(images(), **changes)
    assert all(word in str(caught.value) for word in words), caught.value


def config(**changes) -> Config:
    return Config(base().to_dict()).replace(**changes)


@pytest.mark.parametrize(
    'task, given, name, better',
    [
        ('classify', '', 'accuracy', True),
        ('binary', '', 'accuracy', True),
        ('lm', '', 'loss', False),
        ('lm', 'accuracy', 'accuracy', True),
        ('classify', 'loss', 'loss', False),
    ],
)
def test_the_metric_that_decides_is_the_tasks_own_unless_another_is_named(
    task, given, name, better
):
    cfg = resolve(config(task__name=task, best_metric=given), None)
    assert cfg.best_metric == name  # and so it stands in config.json
    found = best_metric(cfg)
    assert (found.name, found.higher_is_better) == (name, better)
    val = {1: {name: 0.1}, 2: {name: 0.9}, 3: {name: 0.5}}
    assert best_of(val, found, [1, 2, 3]) == (2 if better else 1)


def test_a_metric_that_the_task_does_not_have():
    with pytest.raises(UserError) as caught:
        best_metric(config(best_metric='acuracy'))
    assert "config.best_metric='acuracy'" in str(caught.value)
    assert "did you mean 'accuracy'" in str(caught.value)
