"""Layers that several model families share."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from jaxtrain.errors import UserError

# Patches of a batch that may be copied out to make a convolution one product of matrices.
PATCHES_MIB = 64


def check_choices(model: nn.Module, choices: Mapping[str, tuple]) -> None:
    """UserError if a field of a model has a value that is not among its choices."""
    for name, allowed in choices.items():
        if getattr(model, name) not in allowed:
            raise UserError(
                f'config.model.{name}={getattr(model, name)!r} is not known; '
                f'choose from {", ".join(map(str, allowed))}'
            )


def check_widths(model: nn.Module, count: int) -> None:
    """UserError if a model's `widths` are not so many."""
    if len(model.widths) != count:
        raise UserError(
            f'config.model.widths={model.widths!r} holds {len(model.widths)} numbers; '
            f'give {count}, one for each group of layers of {type(model).__name__}'
        )


def conv(width: int, window: int, padding: str = 'SAME', **options) -> nn.Conv:
    """A convolution of stride 1, [batch, h, w, c] -> [batch, h', w', width]: `nn.Conv`, but for how
    it is computed on CPU.

    Args:
      width: channels of the result.
      window: height and width of the kernel, which is float32 [window, window, c, width].
      padding: 'SAME' or 'VALID'.
      **options: of `nn.Conv`.
    """
    return nn.Conv(
        width, (window, window), padding=padding, conv_general_dilated=_convolve, **options
    )


def _convolve(x: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """`lax.conv_general_dilated`, or on CPU without padding one product of patches and kernel.

    The choice is made when the program is lowered for a platform, so that a program for another
    one than this machine's has that platform's convolution. On 2 CPU cores the patches took the
    step of the network in configs/full/cifar10_cnn.py from 50 to 80 a second; padded convolutions
    did not gain (the network of configs/alphabets.py lost half), nor did the large layers of VGG.
    """
    direct: Callable[..., jax.Array] = functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )
    window = kernel.shape[0] * kernel.shape[1]
    if padding != 'VALID' or x.size * window * x.dtype.itemsize > PATCHES_MIB * 2**20:
        return direct(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_patches_times_kernel, default=direct)


def _patches_times_kernel(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of stride 1 without padding; [batch, h, w, c] -> [batch, h', w', width]."""
    rows, columns, channels, width = kernel.shape
    batch, height, breadth = x.shape[0], x.shape[1] - rows + 1, x.shape[2] - columns + 1
    shifted = [x[:, i : i + height, j : j + breadth] for i in range(rows) for j in range(columns)]
    patches = jnp.concatenate(shifted, -1).reshape(-1, rows * columns * channels)
    return (patches @ kernel.reshape(-1, width)).reshape(batch, height, breadth, width)


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


def average_to(x: jax.Array, size: int) -> jax.Array:
    """Averages [batch, h, w, c] to [batch, size, size, c], whatever h and w.

    Position `i` is the mean of rows `floor(i h / size)` up to `ceil((i + 1) h / size)`, as in
    PyTorch's AdaptiveAvgPool2d; where h is less than `size`, rows are repeated.
    """
    rows, columns = (jnp.asarray(_shares(n, size), x.dtype) for n in x.shape[1:3])
    return jnp.einsum('bhwc,ih,jw->bijc', x, rows, columns)


def _shares(length: int, size: int) -> np.ndarray:
    """Float64 [size, length]: what each place takes of each position."""
    shares = np.zeros((size, length))
    for i in range(size):
        start, end = i * length // size, -(-(i + 1) * length // size)
        shares[i, start:end] = 1 / (end - start)
    return shares


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
