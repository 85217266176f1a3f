"""A task: how a batch reaches the model, and what its outputs are worth.

Metrics are per example, so that the train step may average them over a batch and an evaluation may
count every example exactly once, whatever the batch size. Where examples do not count alike (a
window of text counts as its tokens), one of the metrics is `WEIGHT`, and the others are averaged by
it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from jaxtrain.data.on_device.augment import make_augment, make_normalise
from jaxtrain.data.on_device.mixing import OTHER, SHARE, make_mix
from jaxtrain.data.sources.examples import Source
from jaxtrain.errors import UserError

Batch = dict[str, jax.Array]
WEIGHT = 'weight'


@dataclass(frozen=True)
class Task:
    """Plain functions, all pure.

    Attributes:
      train_inputs: (batch, key) -> (model inputs, augmented; the batch with what augmentation makes
        of its labels).
      eval_inputs: batch -> model inputs.
      metrics: (outputs, batch, train) -> {'loss': float32 [batch], ...}.
      probabilities: outputs -> float32 [batch, classes], or of every next token.
      outputs: width of the model's output.
    """

    train_inputs: Callable[[Batch, jax.Array], tuple[jax.Array, Batch]]
    eval_inputs: Callable[[Batch], jax.Array]
    metrics: Callable[..., dict[str, jax.Array]]
    probabilities: Callable[[jax.Array], jax.Array]
    outputs: int


def make_task(cfg, source: Source) -> Task:
    """The task that `config.task` names, for data as that of the source.

    Raises:
      UserError: an unknown task, one that does not fit the data, or a label smoothing outside
        [0, 1].
    """
    name = cfg.task.choose('name', TASKS)
    smoothing = cfg.task.label_smoothing
    if not 0 <= smoothing <= 1:
        raise UserError(f'config.task.label_smoothing={smoothing} must lie between 0 and 1')
    if (name == 'lm') != ('targets' in source.features):
        fit = "'lm'" if name != 'lm' else "'classify' or 'binary'"
        raise UserError(
            f'config.task.name={name!r} does not fit data of config.data.source={cfg.data.source!r}'
            f'; set it to {fit}'
        )
    train_inputs, eval_inputs = _inputs(cfg.data, source)
    metrics, probabilities, outputs = TASKS[name](source, smoothing)
    return Task(train_inputs, eval_inputs, metrics, probabilities, outputs)


def totals(metrics: Mapping[str, jax.Array], counted: jax.Array | None = None) -> dict:
    """Sums over the examples of a batch, each counting as its weight, and the sum of the weights.

    Args:
      metrics: float32 [batch] by name, as `Task.metrics` returns them; without `WEIGHT` among them
        each example counts as 1.
      counted: float32 [batch], 0 for rows that fill up the batch and count for nothing; None counts
        all.

    Returns:
      float32 scalars by the same names and `WEIGHT`.
    """
    weight = metrics.get(WEIGHT, jnp.ones_like(metrics['loss']))
    weight = weight if counted is None else weight * counted
    sums = {name: jnp.sum(v * weight) for name, v in metrics.items() if name != WEIGHT}
    return {**sums, WEIGHT: jnp.sum(weight)}


def _inputs(data, source: Source):
    """(for training, for evaluation): what the model is given of a batch."""
    if source.tokenizer:
        return lambda batch, key: (batch['tokens'], batch), lambda batch: batch['tokens']
    normalise, augment = make_normalise(data, source.shape[2]), make_augment(data)
    mix = make_mix(data)

    def train_inputs(batch: Batch, key: jax.Array) -> tuple[jax.Array, Batch]:
        images, batch = mix(key, augment(key, batch['image']), batch)
        return normalise(images), batch

    return train_inputs, lambda batch: normalise(batch['image'])


def _mixed(of: Callable[[jax.Array], jax.Array], batch: Batch, train: bool) -> jax.Array:
    """What `of` makes of the labels, [batch, ...]; of both labels by their shares if mixed."""
    own = of(batch['label'])
    if not train or SHARE not in batch:
        return own
    share = batch[SHARE].reshape(-1, *[1] * (own.ndim - 1))
    return share * own + (1 - share) * of(batch[OTHER])


def _classify(source: Source, smoothing: float):
    """Softmax cross-entropy over integer labels, and accuracy."""
    classes = source.classes

    def metrics(logits: jax.Array, batch: Batch, train: bool) -> dict[str, jax.Array]:
        targets = _mixed(lambda labels: jax.nn.one_hot(labels, len(classes)), batch, train)
        right = _mixed(lambda labels: logits.argmax(-1) == labels, batch, train)
        if train and smoothing:
            targets = optax.smooth_labels(targets, smoothing)
        return {
            'loss': optax.softmax_cross_entropy(logits.astype(jnp.float32), targets),
            'accuracy': right.astype(jnp.float32),
        }

    def probabilities(logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits.astype(jnp.float32))

    return metrics, probabilities, len(classes)


def _binary(source: Source, smoothing: float):
    """Sigmoid cross-entropy of one output, which speaks for the second class, and accuracy."""
    classes = source.classes
    if len(classes) != 2:
        raise UserError(
            f"config.task.name='binary' is for two classes, but the data has {len(classes)}; "
            "set it to 'classify'"
        )

    def metrics(logits: jax.Array, batch: Batch, train: bool) -> dict[str, jax.Array]:
        logits = logits[:, 0].astype(jnp.float32)
        targets = _mixed(lambda labels: labels.astype(jnp.float32), batch, train)
        right = _mixed(lambda labels: (logits > 0) == (labels == 1), batch, train)
        if train and smoothing:
            targets = targets * (1 - smoothing) + smoothing / 2
        return {
            'loss': optax.sigmoid_binary_cross_entropy(logits, targets),
            'accuracy': right.astype(jnp.float32),
        }

    def probabilities(logits: jax.Array) -> jax.Array:
        second = jax.nn.sigmoid(logits.astype(jnp.float32))
        return jnp.concatenate([1 - second, second], -1)

    return metrics, probabilities, 1


def _lm(source: Source, smoothing: float):
    """Softmax cross-entropy over the next token, in nats, and how often it is the most probable.

    Of a window the mean over its targets that count, whose number is its weight.
    """

    def metrics(logits: jax.Array, batch: Batch, train: bool) -> dict[str, jax.Array]:
        counted = batch['targets'] >= 0
        targets = jnp.maximum(batch['targets'], 0)
        logits = logits.astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        if train and smoothing:
            # What is taken from the target is spread over all tokens.
            spread = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
            loss = (1 - smoothing) * loss + smoothing * spread
        weight = counted.sum(-1).astype(jnp.float32)
        share = counted / jnp.maximum(weight, 1)[:, None]
        right = (logits.argmax(-1) == targets).astype(jnp.float32)
        return {'loss': (loss * share).sum(-1), 'accuracy': (right * share).sum(-1), WEIGHT: weight}

    def probabilities(logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits.astype(jnp.float32))

    assert source.tokenizer is not None  # data with targets are windows of text
    return metrics, probabilities, source.tokenizer.size


TASKS = {'classify': _classify, 'binary': _binary, 'lm': _lm}
