"""Layers that several model families share."""

import jax
import jax.numpy as jnp
from flax import linen as nn


def max_pool(x: jax.Array, window: int) -> jax.Array:
    """Max over non-overlapping windows; [batch, h, w, c] -> [batch, h // window, w // window, c].

    Rows and columns that do not fill a window are left out, as in a pooling without padding. A
    reshape and a maximum instead of `nn.max_pool`, whose gradient scatters one value at a time on
    CPU (a small CNN's step took 2.7 times as long with it).
    """
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    return x.reshape(batch, rows, window, columns, window, channels).max((2, 4))


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
