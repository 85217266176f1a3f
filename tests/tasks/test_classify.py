"""The task `classify`: losses, metrics and predictions against NumPy."""

import jax.numpy as jnp
import numpy as np

from tests.tasks.made import CLASSES, IMAGES, SHARES, images, log_softmax, make

LOGITS = np.random.default_rng(0).normal(0, 3, (6, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 1, 0], np.int32)
BATCH = {'image': IMAGES, 'label': LABELS}


def task(**changes):
    return make(images(), **changes)


def trained(task, logits, batch):
    return task.values(jnp.asarray(logits), batch, task.smoothing)


def test_loss_and_accuracy_of_each_example():
    values = trained(task(), LOGITS, BATCH)
    np.testing.assert_allclose(values['loss'], -log_softmax(LOGITS)[range(6), LABELS], rtol=1e-5)
    np.testing.assert_array_equal(values['accuracy'], LOGITS.argmax(1) == LABELS)
    assert 0 < float(values['accuracy'].mean()) < 1
    assert {v.dtype.name for v in values.values()} == {'float32'}


def test_label_smoothing_applies_only_in_training():
    smooth = task(task__label_smoothing=0.3)
    targets = 0.7 * np.eye(3)[LABELS] + 0.3 / 3
    expected = -(targets * log_softmax(LOGITS)).sum(1)
    loss = trained(smooth, LOGITS, BATCH)['loss']
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    evaluated = smooth.rows(jnp.asarray(LOGITS), BATCH)['loss']
    np.testing.assert_allclose(evaluated, -log_softmax(LOGITS)[range(6), LABELS], rtol=1e-5)


def test_loss_of_bfloat16_logits_is_computed_in_float32():
    half = jnp.asarray(LOGITS, jnp.bfloat16)
    loss = trained(task(), half, BATCH)['loss']
    expected = -log_softmax(half.astype(jnp.float32))[range(6), LABELS]
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_there_is_one_output_per_class():
    assert task().outputs(images()) == len(CLASSES)


OTHERS = np.roll(LABELS, 1)
MIXED = {**BATCH, 'mix_label': OTHERS, 'mix': SHARES}


def test_mixed_labels_are_weighted_by_their_shares_in_training():
    made = task(task__label_smoothing=0.3)
    values = trained(made, LOGITS, MIXED)
    first, second = np.eye(3)[LABELS], np.eye(3)[OTHERS]
    shares = SHARES[:, None].astype(float)
    targets = 0.7 * (shares * first + (1 - shares) * second) + 0.3 / 3
    np.testing.assert_allclose(values['loss'], -(targets * log_softmax(LOGITS)).sum(1), rtol=1e-5)
    guess = LOGITS.argmax(1)
    right = SHARES * (guess == LABELS) + (1 - SHARES) * (guess == OTHERS)
    np.testing.assert_allclose(values['accuracy'], right, rtol=1e-6)
    assert len(set(right)) > 2  # so that a wrong share would be noticed
    for name, value in made.rows(jnp.asarray(LOGITS), MIXED).items():
        plain = made.rows(jnp.asarray(LOGITS), BATCH)[name]
        np.testing.assert_array_equal(value, plain)


def test_a_prediction_lists_the_most_probable_classes_in_order():
    prediction = task().prediction
    arrays = prediction.arrays(jnp.log(jnp.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])))
    assert arrays['probabilities'].dtype == jnp.float32
    rows = [{'probabilities': np.asarray(row)} for row in arrays['probabilities']]
    line = prediction.line(rows[0], CLASSES, 2)
    assert list(line) == ['class', 'probability', 'probabilities']
    assert line['class'] == 'b' and abs(line['probability'] - 0.7) < 1e-6
    assert list(line['probabilities']) == ['b', 'a']
    # Equally probable classes keep their order.
    assert list(prediction.line(rows[1], CLASSES, 3)['probabilities']) == ['a', 'b', 'c']
