"""Layers that several model families share."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from jaxtrain.errors import UserError

# Limit on the patches of a batch that are copied to compute a convolution as a matrix product.
PATCHES_MIB = 64


def check_choices(model: nn.Module, choices: Mapping[str, tuple]) -> None:
    """Raises a UserError if a field of a model has a value that is not one of its choices."""
    for name, allowed in choices.items():
        if getattr(model, name) not in allowed:
            raise UserError(
                f'config.model.{name}={getattr(model, name)!r} is not known; '
                f'choose from {", ".join(map(str, allowed))}'
            )


def check_widths(model: nn.Module, count: int) -> None:
    """Raises a UserError if a model's `widths` does not have `count` elements."""
    if len(model.widths) != count:
        raise UserError(
            f'config.model.widths={model.widths!r} holds {len(model.widths)} numbers; '
            f'give {count}, one for each group of layers of {type(model).__name__}'
        )


def conv(width: int, window: int, padding: str = 'SAME', **options) -> nn.Conv:
    """`nn.Conv` of stride 1, [batch, h, w, c] -> [batch, h', w', width], faster on CPU.

    Args:
      width: channels of the output.
      window: height and width of the kernel, which is float32 [window, window, c, width].
      padding: 'SAME' or 'VALID'.
      **options: options of `nn.Conv`.
    """
    return nn.Conv(
        width, (window, window), padding=padding, conv_general_dilated=_convolve, **options
    )


def _convolve(x: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """`lax.conv_general_dilated`, or on CPU without padding a product of patches and kernel.

    The choice is made when the program is lowered for a platform, so a program that is compiled
    here for another platform has that platform's convolution. On 2 CPU cores the patches raised
    the speed of configs/full/cifar10_cnn.py from 50 to 80 steps per second. Padded convolutions
    (configs/alphabets.py became half as fast) and the large layers of VGG did not gain.
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

    Rows and columns that do not fill a window are dropped, as in pooling without padding. If values
    are equal, the first one receives the gradient, as in PyTorch.

    The gradient of `nn.max_pool` scatters one value at a time on CPU (a small CNN's step took 2.7
    times as long with it). The gradient of a maximum over the axes of a reshape compares values
    with the maximum, and divides by zero if the compiler recomputes them with another rounding so
    that no value is equal. The gradient of a choice between two values always sums to one.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    x = x.reshape(batch, rows, window, columns, window, channels)
    corners = [x[:, :, i, :, j] for i in range(window) for j in range(window)]
    return functools.reduce(_larger, corners)


def average_to(x: jax.Array, size: int) -> jax.Array:
    """Averages [batch, h, w, c] to [batch, size, size, c], for any h and w.

    Position `i` is the mean of rows `floor(i h / size)` up to `ceil((i + 1) h / size)`, as in
    PyTorch's AdaptiveAvgPool2d; if h is less than `size`, rows are repeated.
    """
    rows, columns = (jnp.asarray(_shares(n, size), x.dtype) for n in x.shape[1:3])
    return jnp.einsum('bhwc,ih,jw->bijc', x, rows, columns)


def _shares(length: int, size: int) -> np.ndarray:
    """float64 [size, length], the weight of each input position in each output position."""
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
      outputs: width of the output.
      hidden: widths of the hidden layers.
      dropout: fraction of each hidden layer's activations that is zeroed in training.
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


# How positions become one vector of features, [..., positions, width] -> [..., width].
POOLS: dict[str, Callable[..., jax.Array]] = {
    'mean': jnp.mean,
    'max': jnp.max,
    'avgmax': lambda x, axes: (x.mean(axes) + x.max(axes)) / 2,
}


def flat(x: jax.Array) -> jax.Array:
    """[batch, ...] -> [batch, features]."""
    return jnp.reshape(x, (x.shape[0], -1))
