"""Reading the arrays of a file, piece by piece, into the arrays of a model."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from einops import rearrange

from jaxtrain.errors import UserError
from jaxtrain.params.partition import nbytes
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins.names import Part, Row, their_shape


def fill(archive: Archive, row: Row, shapes: Mapping, arrays: Mapping[str, np.ndarray]) -> None:
    """Read an array of a file, piece by piece, into the model's arrays that are parts of it.

    Args:
      archive: the open file.
      row: the key in the file, and the parameters that its array consists of.
      shapes: shapes of the model's leaves by path.
      arrays: the arrays to fill, by path; parts that are not among them are skipped.
    """
    targets, high = [], 0
    for part in row.parts:
        low, high = high, high + their_shape(Row(row.theirs, (part,)), shapes)[row.axis]
        if part.path in arrays:
            targets.append((low, high, _in_file_order(part, arrays[part.path])))
    first = 0
    for piece in _finite_pieces(archive, row.theirs, np.float32):
        for low, high, target in targets:
            if row.axis:
                start, values = first, piece[(slice(None),) * row.axis + (slice(low, high),)]
            else:
                start = max(first - low, 0)
                values = piece[max(low - first, 0) : max(high - first, 0)]
            target = target[start : start + len(values)]
            target[...] = values.reshape(target.shape)
        first += len(piece)


def fill_unchanged(archive: Archive, key: str, array: np.ndarray) -> None:
    """Read an array that has the same shape and order of axes in the file."""
    flat, start = array.reshape(-1), 0
    for piece in _finite_pieces(archive, key, array.dtype):
        flat[start : start + piece.size] = piece.reshape(-1)
        start += piece.size


def equal(archive: Archive, first: str, second: str) -> bool:
    """Whether two arrays of a file have the same shape and values."""
    if archive.arrays[first].shape != archive.arrays[second].shape:
        return False
    # Pieces may end at different rows, since arrays may have different dtypes.
    rows: list[Iterator[np.ndarray]] = [
        (row for piece in archive.read(key) for row in piece) for key in (first, second)
    ]
    return all(np.array_equal(a, b) for a, b in zip(*rows, strict=True))


def _finite_pieces(archive: Archive, key: str, dtype: Any) -> Iterator[np.ndarray]:
    """Yield the pieces of an array, converted to a dtype. UserError if one has NaN or Inf."""
    for piece in archive.read(key):
        with np.errstate(over='ignore', invalid='ignore'):
            piece = piece.astype(dtype, copy=False)
            flat = piece.reshape(-1)
            # The sum of squares is finite if all values are, unless it overflows; it takes a fifth
            # of the time.
            finite = np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all()
        if not finite:
            raise UserError(
                f'{archive.path}: {key} holds NaN or Inf (as {np.dtype(dtype)}); use weights from '
                'before that training diverged'
            )
        yield piece


def _in_file_order(part: Part, array: np.ndarray) -> np.ndarray:
    """Return a view of a model's array with the axes in the order of the file.

    The first axis is as in the file. Others that the pattern joins in brackets stay separate, since
    no view can join them.
    """
    model_axes, file_axes = part.pattern.split('->')
    axes = re.fullmatch(r'\s*(\([^)]*\)|\S+)(.*)', file_axes)
    assert axes is not None, part.pattern
    first, others = axes.groups()
    others = others.replace('(', ' ').replace(')', ' ')
    view = rearrange(array, f'{model_axes} -> {first} {others}', **dict(part.sizes))
    assert np.may_share_memory(view, array), f'{part.pattern}: writes to a copy would be lost'
    return view


def aligned(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Allocate memory for a leaf, aligned to 64 bytes, so that JAX uses it without a copy."""
    memory = np.empty(nbytes(leaf) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes(leaf)].view(leaf.dtype).reshape(leaf.shape)
