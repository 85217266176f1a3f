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
      outputs: width of the model's output.
    """

    train_inputs: Callable[[Batch, jax.Array], jax.Array]
    eval_inputs: Callable[[Batch], jax.Array]
    metrics: Callable[..., dict[str, jax.Array]]
    outputs: int


def make_task(cfg, classes: tuple[str, ...], channels: int) -> Task:
    """The task that `config.task` names, for data with these classes and image channels.

    Raises:
      UserError: an unknown task, or a label smoothing outside [0, 1].
    """
    make = {'classify': _classify}[cfg.task.choose('name', ('classify',))]
    return make(cfg, classes, channels)


def _classify(cfg, classes: tuple[str, ...], channels: int) -> Task:
    """Softmax cross-entropy over integer labels, and accuracy."""
    smoothing = cfg.task.label_smoothing
    if not 0 <= smoothing <= 1:
        raise UserError(f'config.task.label_smoothing={smoothing} must lie between 0 and 1')
    normalise = make_normalise(cfg.data, channels)
    augment = make_augment(cfg.data)

    def metrics(logits: jax.Array, batch: Batch, train: bool) -> dict[str, jax.Array]:
        labels = batch['label']
        targets = jax.nn.one_hot(labels, len(classes))
        if train and smoothing:
            targets = optax.smooth_labels(targets, smoothing)
        return {
            'loss': optax.softmax_cross_entropy(logits.astype(jnp.float32), targets),
            'accuracy': (logits.argmax(-1) == labels).astype(jnp.float32),
        }

    return Task(
        train_inputs=lambda batch, key: normalise(augment(key, batch['image'])),
        eval_inputs=lambda batch: normalise(batch['image']),
        metrics=metrics,
        outputs=len(classes),
    )
