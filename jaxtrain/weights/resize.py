"""Resizing of arrays to other shapes than those they were trained with: position embeddings, patch
kernels and first convolutions. An array is resized only if a restore rule requests it.
"""

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]


def can(path: str, have: Shape, want: Shape) -> bool:
    """Return whether a leaf can be resized; its path determines what kind of array it is."""
    if path.endswith('/position') and len(have) == len(want) == 3:
        return have[2] == want[2]
    if path.endswith('positions/embedding') and len(have) == len(want) == 2:
        return have[1] == want[1] and have[0] >= want[0]
    if path.endswith('patch/kernel') and len(have) == len(want) == 4:
        return have[3] == want[3] and (have[2] == want[2] or have[2] == 3)
    if path.endswith('/kernel') and len(have) == len(want) == 4:
        return have[:2] == want[:2] and have[3] == want[3] and have[2] == 3
    return False


def resize(path: str, array: jax.Array, want: Shape) -> jax.Array:
    """Resize a leaf to a shape for which `can` returns True."""
    if path.endswith('/position'):
        return positions(array, want[:2])
    if path.endswith('positions/embedding'):
        return array[: want[0]]
    if array.shape[2] != want[2]:
        array = channels(array, want[2])
    return array if array.shape[:2] == want[:2] else patches(array, want[:2])


def positions(grid: jax.Array, size: Shape) -> jax.Array:
    """Resize position embeddings [rows, columns, width] to another grid, bicubic with
    antialiasing, as timm's resample_abs_pos_embed does.
    """
    shape = (*size, grid.shape[2])
    return jax.image.resize(grid, shape, 'bicubic', antialias=True)


def patches(kernel: jax.Array, size: Shape) -> jax.Array:
    """Resize a patch kernel [rows, columns, channels, width] such that a patch and the same patch
    resized have the same embedding, as nearly as possible (FlexiViT, arXiv:2212.08013, equation 5):
    by the pseudo-inverse of a resize, bicubic with antialiasing as in timm's resample_patch_embed.
    """
    old = kernel.shape[:2]
    units = jnp.eye(old[0] * old[1], dtype=kernel.dtype).reshape(-1, *old)
    resized = jax.image.resize(units, (len(units), *size), 'bicubic', antialias=True)
    matrix = np.asarray(resized.reshape(len(units), -1), np.float64)
    # A matrix that is finer on one axis and coarser on the other is rank-deficient up to float32
    # rounding, which the cutoff therefore covers.
    inverse = np.linalg.pinv(matrix, rcond=max(matrix.shape) * np.finfo(np.float32).eps)
    flat = np.asarray(kernel, np.float64).reshape(old[0] * old[1], -1)
    out = (inverse @ flat).reshape(*size, *kernel.shape[2:])
    return jnp.asarray(out, kernel.dtype)


def channels(kernel: jax.Array, count: int) -> jax.Array:
    """Convert a first convolution [rows, columns, 3, width] to another number of input channels.

    One channel gets the sum over RGB; more get RGB repeated, scaled to preserve activations.
    """
    if count == 1:
        return kernel.sum(2, keepdims=True)
    repeated = jnp.arange(count) % 3
    return kernel[:, :, repeated] * (3 / count)
