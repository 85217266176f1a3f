"""What holds for every task, and how a config selects a task and its best metric."""

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
    """A source that fits the task, model outputs for six examples, and their batch."""
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
    # A metric that tables show in percent is a fraction, and higher is better for all of these.
    assert all(metric.higher_is_better for metric in task.metrics if metric.percent)


@every_task
def test_values_are_finite_per_example_and_the_loss_has_a_gradient(name):
    source, logits, batch = given(name)
    task = TASKS[name]
    values = task.values(logits, batch, task.smoothing or 0.0)
    assert {(v.shape, v.dtype.name) for v in values.values()} == {((6,), 'float32')}
    assert all(np.isfinite(v).all() for v in values.values())
    gradient = jax.grad(lambda x: totals(task.values(x, batch, 0.0))['loss'])(logits)
    assert gradient.shape == logits.shape and bool((gradient != 0).any())


@every_task
def test_metrics_depend_only_on_the_rows_of_a_split(name):
    """They do not depend on the batches, and have the declared names."""
    source, logits, batch = given(name)
    task = TASKS[name]
    label = ARRAYS[task.label]
    halves = [
        task.rows(logits[part], {label: batch[label][part]}) for part in (slice(0, 2), slice(2, 6))
    ]
    rows = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
    whole = {name: np.asarray(row) for name, row in task.rows(logits, batch).items()}
    metrics = task.summarize(rows)
    assert metrics == pytest.approx(task.summarize(whole), rel=1e-6)
    assert {*metrics} == {metric.name for metric in task.metrics}
    for metric in task.metrics:
        if metric.is_mean:
            mean = np.average(rows[metric.name], weights=rows.get(WEIGHT))
            assert metrics[metric.name] == pytest.approx(mean, rel=1e-6)


@every_task
def test_a_prediction_has_the_columns_of_the_table(name):
    source, logits, _ = given(name)
    prediction = TASKS[name].prediction
    if prediction is None:  # `predict` continues prompts
        assert source.tokenizer
        return
    arrays = prediction.arrays(logits)
    line = prediction.line({k: np.asarray(v[0]) for k, v in arrays.items()}, source.classes, 2)
    assert all(len(array) == 6 for array in arrays.values())
    assert prediction.columns and {*prediction.columns} <= {*line}


@every_task
def test_data_without_the_labels_of_the_task_is_refused(name):
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
def test_invalid_settings_are_refused(changes, words):
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
def test_the_best_metric_is_the_main_metric_unless_the_config_names_one(task, given, name, better):
    cfg = resolve(config(task__name=task, best_metric=given), None)
    assert cfg.best_metric == name  # config.json contains it
    metric = best_metric(cfg)
    assert (metric.name, metric.higher_is_better) == (name, better)
    val = {1: {name: 0.1}, 2: {name: 0.9}, 3: {name: 0.5}}
    assert best_of(val, metric, [1, 2, 3]) == (2 if better else 1)


def test_a_best_metric_that_the_task_does_not_have_is_refused():
    with pytest.raises(UserError) as caught:
        best_metric(config(best_metric='acuracy'))
    assert "config.best_metric='acuracy'" in str(caught.value)
    assert "did you mean 'accuracy'" in str(caught.value)
