"""Layers that several model families share."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn


def max_pool(x: jax.Array, window: int) -> jax.Array:
    """Max over non-overlapping windows; [batch, h, w, c] -> [batch, h // window, w // window, c].

    Rows and columns that do not fill a window are left out, as in a pooling without padding. Of
    equal values the first takes the gradient, as in PyTorch.

    Not `nn.max_pool`, whose gradient scatters one value at a time on CPU (a small CNN's step took
    2.7 times as long with it). Nor the maximum over the axes of a reshape, whose gradient looks for
    values equal to the maximum, and divides by none where the compiler recomputed them with another
    rounding. A choice between two values has a gradient that adds up to one whatever happens.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    x = x.reshape(batch, rows, window, columns, window, channels)
    places = [x[:, :, i, :, j] for i in range(window) for j in range(window)]
    return functools.reduce(_larger, places)


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where((b > a) | jnp.isnan(b), b, a)


class Head(nn.Module):
    """Dense layers of widths `hidden`, each with ReLU and dropout, then `outputs` linear units.

    Attributes:
      outputs: width of the result.
      hidden: widths of the layers before it.
      dropout: share of each hidden layer's activations that is zeroed in training.
    """

    outputs: int
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for number, width in enumerate(self.hidden):
            x = nn.relu(nn.Dense(width, name=f'dense_{number}')(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, name='logits')(x)


def flat(x: jax.Array) -> jax.Array:
    """[batch, ...] -> [batch, features]."""
    return jnp.reshape(x, (x.shape[0], -1))
