"""The task `lm`: losses and metrics of windows of text against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.tasks.task import WEIGHT, totals
from tests.tasks.made import VOCABULARY, log_softmax, make, texts

NEXT = np.random.default_rng(2).normal(0, 3, (3, 4, VOCABULARY)).astype(np.float32)
NEXT[0, 1, 1] = NEXT[2, 3, 2] = 9  # at least these predictions are right
TEXTS = {
    'tokens': np.zeros((3, 4), np.int32),
    'targets': np.array([[0, 1, 2, 3], [4, 4, -1, -1], [-1, -1, -1, 2]], np.int32),
}


def lm(**changes):
    settings = {'task__name': 'lm', 'data__source': 'corpus', 'data__tokenizer': 'bytes'}
    return make(texts(), **settings, **changes)


def trained(task):
    return task.values(jnp.asarray(NEXT), TEXTS, task.smoothing)


def next_token(smoothing=0.0) -> list[list[float]]:
    """The loss of every target that counts, by window."""
    losses = []
    for window, targets in zip(NEXT.astype(np.float64), TEXTS['targets'], strict=True):
        logs = log_softmax(window)
        losses.append(
            [
                -(1 - smoothing) * row[t] - smoothing * row.mean()
                for row, t in zip(logs, targets, strict=True)
                if t >= 0
            ]
        )
    return losses


@pytest.mark.parametrize('train, smoothing', [(True, 0.0), (True, 0.1), (False, 0.1)])
def test_the_loss_of_a_window_is_the_mean_over_targets_that_count(train, smoothing):
    made = lm(task__label_smoothing=smoothing)
    values = trained(made) if train else made.rows(jnp.asarray(NEXT), TEXTS)
    expected = next_token(smoothing if train else 0.0)
    np.testing.assert_allclose(values['loss'], list(map(np.mean, expected)), rtol=1e-5)
    np.testing.assert_array_equal(values[WEIGHT], [4, 2, 1])


def test_accuracy_covers_targets_that_count():
    values = lm().rows(jnp.asarray(NEXT), TEXTS)
    right = (NEXT.argmax(-1) == TEXTS['targets']) & (TEXTS['targets'] >= 0)
    np.testing.assert_allclose(values['accuracy'], right.sum(1) / [4, 2, 1])
    assert right.any()


def test_tokens_have_equal_weight_in_a_batch_and_in_an_evaluation():
    values = trained(lm())
    expected = np.mean(sum(next_token(), []))
    sums = totals(values)
    assert set(sums) == {'loss', 'accuracy', WEIGHT} and float(sums[WEIGHT]) == 7
    assert float(sums['loss'] / sums[WEIGHT]) == pytest.approx(expected, rel=1e-5)
    whole = lm().summarize({name: np.asarray(v) for name, v in values.items()})
    assert set(whole) == {'loss', 'accuracy'}
    assert whole['loss'] == pytest.approx(expected, rel=1e-5)


def test_padding_rows_do_not_count():
    values = trained(lm())
    sums = totals(values, jnp.array([1.0, 0.0, 1.0]))
    whole, _, last = next_token()
    assert float(sums[WEIGHT]) == 5
    assert float(sums['loss']) == pytest.approx(sum(whole + last), rel=1e-5)


def test_there_is_one_output_per_token():
    assert lm().outputs(texts()) == VOCABULARY
