"""The task `binary`: losses, metrics and predictions against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.errors import UserError
from tests.tasks.made import IMAGES, SHARES, images, make

PAIR = ('cat', 'dog')
ONE = np.random.default_rng(1).normal(0, 3, (6, 1)).astype(np.float32)
TWO = {'image': IMAGES, 'label': np.array([0, 1, 1, 0, 1, 0], np.int32)}


def binary(**changes):
    return make(images(PAIR), task__name='binary', **changes)


def trained(task, batch):
    return task.values(jnp.asarray(ONE), batch, task.smoothing)


def sigmoid_loss(logits, targets):
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))


def test_loss_and_accuracy_of_each_example():
    made = binary()
    assert made.outputs(images(PAIR)) == 1
    values = trained(made, TWO)
    np.testing.assert_allclose(values['loss'], sigmoid_loss(ONE[:, 0], TWO['label']), rtol=1e-5)
    np.testing.assert_array_equal(values['accuracy'], (ONE[:, 0] > 0) == TWO['label'])
    assert values['loss'].shape == (6,) and 0 < float(values['accuracy'].mean()) < 1


def test_label_smoothing_applies_only_in_training():
    made = binary(task__label_smoothing=0.2)
    targets = np.where(TWO['label'] == 1, 0.9, 0.1)
    loss = trained(made, TWO)['loss']
    np.testing.assert_allclose(loss, sigmoid_loss(ONE[:, 0], targets), rtol=1e-5)
    evaluated = made.rows(jnp.asarray(ONE), TWO)['loss']
    np.testing.assert_allclose(evaluated, sigmoid_loss(ONE[:, 0], TWO['label']), rtol=1e-5)


def test_mixed_labels_are_weighted_by_their_shares_in_training():
    made = binary(task__label_smoothing=0.2)
    other = np.roll(TWO['label'], 1)
    values = trained(made, {**TWO, 'mix_label': other, 'mix': SHARES})
    targets = (SHARES * TWO['label'] + (1 - SHARES) * other) * 0.8 + 0.1
    np.testing.assert_allclose(values['loss'], sigmoid_loss(ONE[:, 0], targets), rtol=1e-5)
    guess = ONE[:, 0] > 0
    right = SHARES * (guess == TWO['label']) + (1 - SHARES) * (guess == other)
    np.testing.assert_allclose(values['accuracy'], right, rtol=1e-6)


def test_binary_equals_softmax_over_zero_and_the_logit():
    """Both tasks yield the same probabilities for two classes."""
    pair = jnp.concatenate([jnp.zeros((6, 1)), jnp.asarray(ONE)], -1)
    softmax = make(images(PAIR))
    one, two = (
        made.prediction.arrays(logits)['probabilities']
        for made, logits in ((binary(), jnp.asarray(ONE)), (softmax, pair))
    )
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(one[:, 1] > 0.5, ONE[:, 0] > 0)


def test_other_numbers_of_classes_are_refused():
    with pytest.raises(UserError, match="config.task.name='binary' needs two classes.*has 3"):
        make(images(), task__name='binary')


def test_a_prediction_lists_both_classes():
    prediction = binary().prediction
    (row,) = prediction.arrays(jnp.array([[2.0]]))['probabilities']
    line = prediction.line({'probabilities': np.asarray(row)}, PAIR, 5)
    assert line['class'] == 'dog' and list(line['probabilities']) == ['dog', 'cat']
    assert line['probability'] == pytest.approx(1 / (1 + np.exp(-2)), rel=1e-6)
