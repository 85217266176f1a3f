"""The gradients of a batch that is taken in parts, one after the other, to save memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]
# (model inputs, the batch, float32 [batch] that is 0 for rows that count for nothing, or None)
MicroBatch = tuple[jax.Array, Batch, jax.Array | None]
# (trainable parameters, model_state, part of a batch, key)
#   -> (loss, (sums of metrics, model_state))
Loss = Callable[[Any, Any, MicroBatch, jax.Array], tuple[jax.Array, tuple[dict, Any]]]
# (trainable parameters, model_state, (model inputs, the batch), key)
#   -> (gradients, sums of metrics, model_state)
Gradients = Callable[[Any, Any, tuple[jax.Array, Batch], jax.Array], tuple[Any, dict, Any]]


def gradients(loss: Loss, accumulate: int) -> Gradients:
    """The function that differentiates the loss of a whole batch, taken in so many parts."""
    gradient = jax.grad(loss, has_aux=True)

    def whole(trainable: Any, model_state: Any, batch: tuple[jax.Array, Batch], key: jax.Array):
        grads, (sums, model_state) = gradient(trainable, model_state, (*batch, None), key)
        return grads, sums, model_state

    def in_parts(trainable: Any, model_state: Any, batch: tuple[jax.Array, Batch], key: jax.Array):
        def add(carry: tuple[Any, Any], part: tuple[MicroBatch, jax.Array]):
            total, model_state = carry
            micro, number = part
            # Without it each part would drop the same units.
            own_key = jax.random.fold_in(key, number)
            grads, (sums, model_state) = gradient(trainable, model_state, micro, own_key)
            return (jax.tree.map(jnp.add, total, grads), model_state), sums

        zero = jax.tree.map(jnp.zeros_like, trainable)
        parts = _micro_batches(batch, accumulate)
        (grads, model_state), sums = jax.lax.scan(
            add, (zero, model_state), (parts, jnp.arange(accumulate))
        )
        return grads, jax.tree.map(lambda x: x.sum(0), sums), model_state

    return whole if accumulate == 1 else in_parts


def _micro_batches(batch: tuple[jax.Array, Batch], count: int) -> MicroBatch:
    """(inputs, batch, which rows count), each with an axis of parts in front.

    Part `i` has rows `i`, `i + count`, ...: so each device keeps the rows that it has. Where they
    do not come out even, rows that count for nothing fill up.
    """
    rows = len(batch[0])
    spare = -rows % count

    def deal(x: jax.Array) -> jax.Array:
        # The last row again, since a row of zeros may be something that no model has to take.
        x = jnp.concatenate([x, jnp.repeat(x[-1:], spare, 0)]) if spare else x
        return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)

    counted = (jnp.arange(rows + spare) < rows).astype(jnp.float32)
    return (*jax.tree.map(deal, batch), counted.reshape(-1, count).swapaxes(0, 1))
