"""Gradient accumulation: the gradients of a batch, computed in parts to save memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]
# (model inputs, batch, float32 [batch] that is 0 for padding rows, or None)
MicroBatch = tuple[jax.Array, Batch, jax.Array | None]
# (trainable parameters, model_state, part of a batch, key)
#   -> (loss, (sums of metrics, model_state))
Loss = Callable[[Any, Any, MicroBatch, jax.Array], tuple[jax.Array, tuple[dict, Any]]]
# (trainable parameters, model_state, (model inputs, the batch), key)
#   -> (gradients, sums of metrics, model_state)
Gradients = Callable[[Any, Any, tuple[jax.Array, Batch], jax.Array], tuple[Any, dict, Any]]


def gradients(loss: Loss, accumulate: int) -> Gradients:
    """The function that differentiates the loss of a whole batch in `accumulate` parts."""
    gradient = jax.grad(loss, has_aux=True)

    def whole(trainable: Any, model_state: Any, batch: tuple[jax.Array, Batch], key: jax.Array):
        grads, (sums, model_state) = gradient(trainable, model_state, (*batch, None), key)
        return grads, sums, model_state

    def in_parts(trainable: Any, model_state: Any, batch: tuple[jax.Array, Batch], key: jax.Array):
        def add(carry: tuple[Any, Any], part: tuple[MicroBatch, jax.Array]):
            total, model_state = carry
            micro, number = part
            # With the same key, each part would drop the same units.
            part_key = jax.random.fold_in(key, number)
            grads, (sums, model_state) = gradient(trainable, model_state, micro, part_key)
            return (jax.tree.map(jnp.add, total, grads), model_state), sums

        zero = jax.tree.map(jnp.zeros_like, trainable)
        parts = _micro_batches(batch, accumulate)
        (grads, model_state), sums = jax.lax.scan(
            add, (zero, model_state), (parts, jnp.arange(accumulate))
        )
        return grads, jax.tree.map(lambda x: x.sum(0), sums), model_state

    return whole if accumulate == 1 else in_parts


def _micro_batches(batch: tuple[jax.Array, Batch], count: int) -> MicroBatch:
    """(inputs, batch, which rows count), each with a leading axis of parts.

    Part `i` has rows `i`, `i + count`, ..., so that each device keeps its rows. If `count` does not
    divide the number of rows, padding rows are added that do not count.
    """
    rows = len(batch[0])
    padding = -rows % count

    def deal(x: jax.Array) -> jax.Array:
        # Repeat the last row, because a row of zeros may not be a valid input.
        x = jnp.concatenate([x, jnp.repeat(x[-1:], padding, 0)]) if padding else x
        return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)

    counted = (jnp.arange(rows + padding) < rows).astype(jnp.float32)
    return (*jax.tree.map(deal, batch), counted.reshape(-1, count).swapaxes(0, 1))
