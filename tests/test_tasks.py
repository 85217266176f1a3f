"""The tasks: inputs, losses, metrics and probabilities against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.config import Config, base
from jaxtrain.errors import UserError
from jaxtrain.tasks import make_task

CLASSES = ('a', 'b', 'c')
LOGITS = np.random.default_rng(0).normal(0, 3, (6, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 1, 0], np.int32)
BATCH = {'image': np.arange(6 * 8, dtype=np.uint8).reshape(6, 2, 2, 2), 'label': LABELS}


def task(channels=2, **changes):
    return make_task(Config(base().to_dict()).replace(**changes), CLASSES, channels)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_loss_and_accuracy_of_each_example():
    values = task().metrics(jnp.asarray(LOGITS), BATCH, train=True)
    np.testing.assert_allclose(values['loss'], -log_softmax(LOGITS)[range(6), LABELS], rtol=1e-5)
    np.testing.assert_array_equal(values['accuracy'], LOGITS.argmax(1) == LABELS)
    assert 0 < float(values['accuracy'].mean()) < 1
    assert {v.dtype.name for v in values.values()} == {'float32'}


def test_label_smoothing_in_training():
    smooth = task(task__label_smoothing=0.3)
    targets = 0.7 * np.eye(3)[LABELS] + 0.3 / 3
    expected = -(targets * log_softmax(LOGITS)).sum(1)
    trained = smooth.metrics(jnp.asarray(LOGITS), BATCH, train=True)['loss']
    np.testing.assert_allclose(trained, expected, rtol=1e-5)
    evaluated = smooth.metrics(jnp.asarray(LOGITS), BATCH, train=False)['loss']
    np.testing.assert_allclose(evaluated, -log_softmax(LOGITS)[range(6), LABELS], rtol=1e-5)


def test_loss_of_half_precision_logits_is_taken_in_float32():
    half = jnp.asarray(LOGITS, jnp.bfloat16)
    loss = task().metrics(half, BATCH, train=True)['loss']
    expected = -log_softmax(half.astype(jnp.float32))[range(6), LABELS]
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_inputs_are_normalised_per_channel():
    made = task(data__mean=(0.25, 0.5), data__std=(0.5, 2.0))
    expected = (BATCH['image'] / 255 - np.array([0.25, 0.5])) / np.array([0.5, 2.0])
    for inputs in (made.eval_inputs(BATCH), made.train_inputs(BATCH, jax.random.key(0))):
        np.testing.assert_allclose(inputs, expected, atol=1e-6)


def test_augmentation_is_for_training_alone_and_comes_before_normalisation():
    made = task(data__augment=(('noise', 10.0),), data__std=(0.01,))
    plain = task(data__std=(0.01,)).eval_inputs(BATCH)
    np.testing.assert_array_equal(made.eval_inputs(BATCH), plain)
    noise = (made.train_inputs(BATCH, jax.random.key(0)) - plain) * 0.01 * 255
    assert 5 < float(noise.std()) < 15


def test_outputs_are_the_classes():
    assert task().outputs == len(CLASSES)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'task__label_smoothing': -0.1}, 'config.task.label_smoothing=-0.1 must lie between 0'),
        ({'task__label_smoothing': 1.1}, 'config.task.label_smoothing=1.1 must lie between 0'),
        ({'task__name': 'classfy'}, "config.task.name='classfy' is not known (did you mean 'cl"),
        ({'data__mean': (0.1, 0.2, 0.3)}, 'config.data.mean=(0.1, 0.2, 0.3) must have one value'),
        ({'data__augment': (('flop',),)}, "config.data.augment: 'flop' is not known"),
    ],
)
def test_what_is_refused(changes, words):
    with pytest.raises(UserError) as caught:
        task(**changes)
    assert words in str(caught.value)


PAIR = ('cat', 'dog')
ONE = np.random.default_rng(1).normal(0, 3, (6, 1)).astype(np.float32)
TWO = {'image': BATCH['image'], 'label': np.array([0, 1, 1, 0, 1, 0], np.int32)}


def binary(**changes):
    cfg = Config(base().to_dict()).replace(task__name='binary', **changes)
    return make_task(cfg, PAIR, 2)


def sigmoid_loss(logits, targets):
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))


def test_binary_loss_and_accuracy_of_each_example():
    made = binary()
    assert made.outputs == 1
    values = made.metrics(jnp.asarray(ONE), TWO, train=True)
    np.testing.assert_allclose(values['loss'], sigmoid_loss(ONE[:, 0], TWO['label']), rtol=1e-5)
    np.testing.assert_array_equal(values['accuracy'], (ONE[:, 0] > 0) == TWO['label'])
    assert values['loss'].shape == (6,) and 0 < float(values['accuracy'].mean()) < 1


def test_binary_label_smoothing_in_training():
    made = binary(task__label_smoothing=0.2)
    targets = np.where(TWO['label'] == 1, 0.9, 0.1)
    trained = made.metrics(jnp.asarray(ONE), TWO, train=True)['loss']
    np.testing.assert_allclose(trained, sigmoid_loss(ONE[:, 0], targets), rtol=1e-5)
    evaluated = made.metrics(jnp.asarray(ONE), TWO, train=False)['loss']
    np.testing.assert_allclose(evaluated, sigmoid_loss(ONE[:, 0], TWO['label']), rtol=1e-5)


def test_binary_is_softmax_over_a_logit_and_zero():
    """So both tasks agree on two classes, probabilities included."""
    pair = jnp.concatenate([jnp.zeros((6, 1)), jnp.asarray(ONE)], -1)
    softmax = make_task(Config(base().to_dict()), PAIR, 2)
    one, two = binary().probabilities(jnp.asarray(ONE)), softmax.probabilities(pair)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(one[:, 1] > 0.5, ONE[:, 0] > 0)


def test_binary_wants_two_classes():
    with pytest.raises(UserError, match="config.task.name='binary' is for two classes.*has 3"):
        task(task__name='binary')
