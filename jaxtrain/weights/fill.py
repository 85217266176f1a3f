"""Arrays of a file, piece by piece into the arrays of a model."""

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


def fill(archive: Archive, found: Row, shapes: Mapping, arrays: Mapping[str, np.ndarray]) -> None:
    """Reads an array of theirs, piece by piece, into those of ours by path that lie in it."""
    places, high = [], 0
    for part in found.parts:
        low, high = high, high + their_shape(Row(found.theirs, (part,)), shapes)[found.axis]
        if part.path in arrays:
            places.append((low, high, _in_their_order(part, arrays[part.path])))
    first = 0
    for piece in _finite_pieces(archive, found.theirs, np.float32):
        for low, high, ours in places:
            if found.axis:
                at, taken = first, piece[(slice(None),) * found.axis + (slice(low, high),)]
            else:
                at, taken = max(first - low, 0), piece[max(low - first, 0) : max(high - first, 0)]
            ours = ours[at : at + len(taken)]
            ours[...] = taken.reshape(ours.shape)
        first += len(piece)


def fill_alike(archive: Archive, key: str, array: np.ndarray) -> None:
    """Reads an array that lies as it does there."""
    flat, at = array.reshape(-1), 0
    for piece in _finite_pieces(archive, key, array.dtype):
        flat[at : at + piece.size] = piece.reshape(-1)
        at += piece.size


def _finite_pieces(archive: Archive, key: str, dtype: Any) -> Iterator[np.ndarray]:
    """The pieces of an array in a dtype. UserError if one holds a value that is no number."""
    for piece in archive.read(key):
        with np.errstate(over='ignore', invalid='ignore'):
            piece = piece.astype(dtype, copy=False)
            flat = piece.reshape(-1)
            # The sum of squares is a number if all are, unless it overflows; it takes a fifth of
            # the time.
            finite = np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all()
        if not finite:
            raise UserError(
                f'{archive.path}: {key} holds NaN or Inf (as {np.dtype(dtype)}); take weights from '
                'before the training that did so diverged'
            )
        yield piece


def _in_their_order(part: Part, array: np.ndarray) -> np.ndarray:
    """A view of our array with the axes of theirs: the first as it is, the others taken apart
    where they are in brackets, for no view could join them again.
    """
    ours, theirs = part.pattern.split('->')
    axes = re.fullmatch(r'\s*(\([^)]*\)|\S+)(.*)', theirs)
    assert axes is not None, part.pattern
    first, others = axes.groups()
    others = others.replace('(', ' ').replace(')', ' ')
    found = rearrange(array, f'{ours} -> {first} {others}', **dict(part.sizes))
    assert np.may_share_memory(found, array), f'{part.pattern}: what is written would be lost'
    return found


def aligned(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Memory for a leaf, which JAX takes as its own and does not copy: aligned to 64 bytes."""
    memory = np.empty(nbytes(leaf) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes(leaf)].view(leaf.dtype).reshape(leaf.shape)
