"""A task: how a batch reaches the model, and what its outputs are worth.

Metrics are per example, so that the train step may average them over a batch and an evaluation may
count every example exactly once, whatever the batch size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from jaxtrain.data.augment import make_augment, make_normalise
from jaxtrain.errors import UserError

Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class Task:
    """Plain functions, all pure.

    Attributes:
      train_inputs: (batch, key) -> model inputs, augmented.
      eval_inputs: batch -> model inputs.
      metrics: (outputs, batch, train) -> {'loss': float32 [batch], ...}.
      probabilities: outputs -> float32 [batch, classes].
      outputs: width of the model's output.
    """

    train_inputs: Callable[[Batch, jax.Array], jax.Array]
    eval_inputs: Callable[[Batch], jax.Array]
    metrics: Callable[..., dict[str, jax.Array]]
    probabilities: Callable[[jax.Array], jax.Array]
    outputs: int


def make_task(cfg, classes: tuple[str, ...], channels: int) -> Task:
    """The task that `config.task` names, for data with these classes and image channels.

    Raises:
      UserError: an unknown task, one that does not fit the classes, or a label smoothing outside
        [0, 1].
    """
    make = TASKS[cfg.task.choose('name', TASKS)]
    smoothing = cfg.task.label_smoothing
    if not 0 <= smoothing <= 1:
        raise UserError(f'config.task.label_smoothing={smoothing} must lie between 0 and 1')
    normalise, augment = make_normalise(cfg.data, channels), make_augment(cfg.data)
    metrics, probabilities, outputs = make(classes, smoothing)
    return Task(
        train_inputs=lambda batch, key: normalise(augment(key, batch['image'])),
        eval_inputs=lambda batch: normalise(batch['image']),
        metrics=metrics,
        probabilities=probabilities,
        outputs=outputs,
    )


def _classify(classes: tuple[str, ...], smoothing: float):
    """Softmax cross-entropy over integer labels, and accuracy."""

    def metrics(logits: jax.Array, batch: Batch, train: bool) -> dict[str, jax.Array]:
        labels = batch['label']
        targets = jax.nn.one_hot(labels, len(classes))
        if train and smoothing:
            targets = optax.smooth_labels(targets, smoothing)
        return {
            'loss': optax.softmax_cross_entropy(logits.astype(jnp.float32), targets),
            'accuracy': (logits.argmax(-1) == labels).astype(jnp.float32),
        }

    def probabilities(logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits.astype(jnp.float32))

    return metrics, probabilities, len(classes)


def _binary(classes: tuple[str, ...], smoothing: float):
    """Sigmoid cross-entropy of one output, which speaks for the second class, and accuracy."""
    if len(classes) != 2:
        raise UserError(
            f"config.task.name='binary' is for two classes, but the data has {len(classes)}; "
            "set it to 'classify'"
        )

    def metrics(logits: jax.Array, batch: Batch, train: bool) -> dict[str, jax.Array]:
        logits, labels = logits[:, 0].astype(jnp.float32), batch['label']
        targets = labels.astype(jnp.float32)
        if train and smoothing:
            targets = targets * (1 - smoothing) + smoothing / 2
        return {
            'loss': optax.sigmoid_binary_cross_entropy(logits, targets),
            'accuracy': ((logits > 0) == (labels == 1)).astype(jnp.float32),
        }

    def probabilities(logits: jax.Array) -> jax.Array:
        second = jax.nn.sigmoid(logits.astype(jnp.float32))
        return jnp.concatenate([1 - second, second], -1)

    return metrics, probabilities, 1


TASKS = {'classify': _classify, 'binary': _binary}
