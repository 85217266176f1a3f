"""The tasks: inputs, losses, metrics and probabilities against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.config import Config, base
from jaxtrain.data.sources.examples import Source
from jaxtrain.data.tokenizer import Tokenizer
from jaxtrain.errors import UserError
from jaxtrain.step.evaluate import means
from jaxtrain.tasks.tasks import WEIGHT, make_task, totals
from jaxtrain.weights.bundle import resolve

CLASSES = ('a', 'b', 'c')
LOGITS = np.random.default_rng(0).normal(0, 3, (6, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 1, 0], np.int32)
BATCH = {'image': np.arange(6 * 8, dtype=np.uint8).reshape(6, 2, 2, 2), 'label': LABELS}


def task(channels=2, **changes):
    return make(CLASSES, channels, **changes)


def make(classes, channels=2, **changes):
    cfg = resolve(Config(base().to_dict()).replace(**changes), None)
    return make_task(cfg, Source(None, 6, (2, 2, channels), classes))


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
    trained, batch = made.train_inputs(BATCH, jax.random.key(0))
    assert batch is BATCH
    for inputs in (made.eval_inputs(BATCH), trained):
        np.testing.assert_allclose(inputs, expected, atol=1e-6)


def test_augmentation_is_for_training_alone_and_comes_before_normalisation():
    made = task(data__augment=(('noise', 10.0),), data__std=(0.01,))
    plain = task(data__std=(0.01,)).eval_inputs(BATCH)
    np.testing.assert_array_equal(made.eval_inputs(BATCH), plain)
    noise = (made.train_inputs(BATCH, jax.random.key(0))[0] - plain) * 0.01 * 255
    assert 5 < float(noise.std()) < 15


def test_outputs_are_the_classes():
    assert task().outputs == len(CLASSES)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'task__label_smoothing': -0.1}, ['config.task.label_smoothing=-0.1', 'between 0 and 1']),
        ({'task__label_smoothing': 1.1}, ['config.task.label_smoothing=1.1', 'between 0 and 1']),
        ({'task__name': 'classfy'}, ["config.task.name='classfy'", "'classify'"]),
        ({'data__mean': (0.1, 0.2, 0.3)}, ['config.data.mean=(0.1, 0.2, 0.3)', 'one value']),
        ({'data__augment': (('flop',),)}, ["config.data.augment: 'flop'", "'flip'"]),
        ({'data__mixup': -0.1}, ['config.data.mixup=-0.1', '0 (off)']),
        ({'data__cutmix': -1.0}, ['config.data.cutmix=-1.0', '0 (off)']),
    ],
)
def test_what_is_refused(changes, words):
    with pytest.raises(UserError) as caught:
        task(**changes)
    assert all(word in str(caught.value) for word in words), caught.value


OTHERS = np.roll(LABELS, 1)
SHARES = np.array([1.0, 0.0, 0.25, 0.5, 0.9, 0.6], np.float32)
MIXED = {**BATCH, 'mix_label': OTHERS, 'mix': SHARES}


def test_mixed_labels_count_by_their_shares_in_training():
    made = task(task__label_smoothing=0.3)
    values = made.metrics(jnp.asarray(LOGITS), MIXED, train=True)
    own, other = np.eye(3)[LABELS], np.eye(3)[OTHERS]
    shares = SHARES[:, None].astype(float)
    targets = 0.7 * (shares * own + (1 - shares) * other) + 0.3 / 3
    np.testing.assert_allclose(values['loss'], -(targets * log_softmax(LOGITS)).sum(1), rtol=1e-5)
    guess = LOGITS.argmax(1)
    right = SHARES * (guess == LABELS) + (1 - SHARES) * (guess == OTHERS)
    np.testing.assert_allclose(values['accuracy'], right, rtol=1e-6)
    assert len(set(right)) > 2  # so that shares are told apart
    for name, value in made.metrics(jnp.asarray(LOGITS), MIXED, train=False).items():
        plain = made.metrics(jnp.asarray(LOGITS), BATCH, train=False)[name]
        np.testing.assert_array_equal(value, plain)


def test_images_are_mixed_after_augmentation_and_before_normalisation():
    settings = {'data__augment': (('noise', 10.0),), 'data__mean': (0.1,), 'data__std': (0.5,)}
    key = jax.random.key(3)
    plain, _ = task(**settings).train_inputs(BATCH, key)
    mixed, batch = task(**settings, data__mixup=0.8).train_inputs(BATCH, key)
    share = np.asarray(batch['mix'])[:, None, None, None]
    np.testing.assert_allclose(mixed, share * plain + (1 - share) * np.roll(plain, 1, 0), atol=1e-5)
    np.testing.assert_array_equal(batch['mix_label'], OTHERS)
    assert 'mix' not in BATCH and np.abs(mixed - plain).max() > 0.1


PAIR = ('cat', 'dog')
ONE = np.random.default_rng(1).normal(0, 3, (6, 1)).astype(np.float32)
TWO = {'image': BATCH['image'], 'label': np.array([0, 1, 1, 0, 1, 0], np.int32)}


def binary(**changes):
    return make(PAIR, task__name='binary', **changes)


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


def test_binary_mixed_labels_count_by_their_shares_in_training():
    made = binary(task__label_smoothing=0.2)
    other = np.roll(TWO['label'], 1)
    values = made.metrics(jnp.asarray(ONE), {**TWO, 'mix_label': other, 'mix': SHARES}, train=True)
    targets = (SHARES * TWO['label'] + (1 - SHARES) * other) * 0.8 + 0.1
    np.testing.assert_allclose(values['loss'], sigmoid_loss(ONE[:, 0], targets), rtol=1e-5)
    guess = ONE[:, 0] > 0
    right = SHARES * (guess == TWO['label']) + (1 - SHARES) * (guess == other)
    np.testing.assert_allclose(values['accuracy'], right, rtol=1e-6)


def test_binary_is_softmax_over_a_logit_and_zero():
    """So both tasks agree on two classes, probabilities included."""
    pair = jnp.concatenate([jnp.zeros((6, 1)), jnp.asarray(ONE)], -1)
    softmax = make(PAIR)
    one, two = binary().probabilities(jnp.asarray(ONE)), softmax.probabilities(pair)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(one[:, 1] > 0.5, ONE[:, 0] > 0)


def test_binary_wants_two_classes():
    with pytest.raises(UserError, match="config.task.name='binary' is for two classes.*has 3"):
        task(task__name='binary')


VOCABULARY = 5
NEXT = np.random.default_rng(2).normal(0, 3, (3, 4, VOCABULARY)).astype(np.float32)
NEXT[0, 1, 1] = NEXT[2, 3, 2] = 9  # at least these are right
TEXTS = {
    'tokens': np.zeros((3, 4), np.int32),
    'targets': np.array([[0, 1, 2, 3], [4, 4, -1, -1], [-1, -1, -1, 2]], np.int32),
}


def lm(**changes):
    cfg = Config(base().to_dict()).replace(
        task__name='lm', data__source='corpus', data__tokenizer='bytes', **changes
    )
    tokenizer = Tokenizer('', VOCABULARY, -1, -1)
    return make_task(resolve(cfg, None), Source(None, 3, (4,), (), tokenizer=tokenizer))


def next_token(smoothing=0.0) -> list[list[float]]:
    """The loss of every target that counts, by window."""
    found = []
    for window, targets in zip(NEXT.astype(np.float64), TEXTS['targets'], strict=True):
        logs = log_softmax(window)
        found.append(
            [
                -(1 - smoothing) * row[t] - smoothing * row.mean()
                for row, t in zip(logs, targets, strict=True)
                if t >= 0
            ]
        )
    return found


@pytest.mark.parametrize('train, smoothing', [(True, 0.0), (True, 0.1), (False, 0.1)])
def test_lm_loss_of_each_window_is_the_mean_of_what_counts(train, smoothing):
    values = lm(task__label_smoothing=smoothing).metrics(jnp.asarray(NEXT), TEXTS, train=train)
    expected = next_token(smoothing if train else 0.0)
    np.testing.assert_allclose(values['loss'], list(map(np.mean, expected)), rtol=1e-5)
    np.testing.assert_array_equal(values[WEIGHT], [4, 2, 1])


def test_lm_accuracy_is_of_what_counts():
    values = lm().metrics(jnp.asarray(NEXT), TEXTS, train=False)
    right = (NEXT.argmax(-1) == TEXTS['targets']) & (TEXTS['targets'] >= 0)
    np.testing.assert_allclose(values['accuracy'], right.sum(1) / [4, 2, 1])
    assert right.any()


def test_every_token_counts_once_in_a_batch_and_in_an_evaluation():
    values = lm().metrics(jnp.asarray(NEXT), TEXTS, train=True)
    expected = np.mean(sum(next_token(), []))
    sums = totals(values)
    assert set(sums) == {'loss', 'accuracy', WEIGHT} and float(sums[WEIGHT]) == 7
    assert float(sums['loss'] / sums[WEIGHT]) == pytest.approx(expected, rel=1e-5)
    whole = means({name: np.asarray(v) for name, v in values.items()})
    assert set(whole) == {'loss', 'accuracy'}
    assert whole['loss'] == pytest.approx(expected, rel=1e-5)


def test_rows_that_fill_up_a_batch_count_for_nothing():
    values = lm().metrics(jnp.asarray(NEXT), TEXTS, train=True)
    sums = totals(values, jnp.array([1.0, 0.0, 1.0]))
    whole, _, last = next_token()
    assert float(sums[WEIGHT]) == 5
    assert float(sums['loss']) == pytest.approx(sum(whole + last), rel=1e-5)


def test_a_task_must_fit_the_data():
    with pytest.raises(UserError, match="task.name='lm' does not fit data of config.data.source"):
        task(task__name='lm')
    with pytest.raises(UserError, match="set it to 'lm'"):
        cfg = resolve(Config(base().to_dict()).replace(data__source='corpus'), None)
        tokenizer = Tokenizer('', VOCABULARY, -1, -1)
        make_task(cfg, Source(None, 3, (4,), (), tokenizer=tokenizer))
