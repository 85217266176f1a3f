"""Arrays read from a file piece by piece, along their first axis, through one small buffer.

A piece stays in the processor's cache while it is converted, checked and put where it belongs, so
that an array is in memory once and not twice.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax
import numpy as np

from jaxtrain.errors import UserError

BYTES = 4 * 2**20


def rows_at_once(leaf: jax.ShapeDtypeStruct) -> int:
    """How many rows make up a piece, at least one."""
    return max(1, BYTES // max(1, math.prod(leaf.shape[1:]) * leaf.dtype.itemsize))


def read(path: Path, leaf: jax.ShapeDtypeStruct, start: int) -> Iterator[np.ndarray]:
    """The pieces of an array that lies in a file from byte `start` on, as `stream` yields them.

    Raises:
      UserError: the file ends before the array does.
    """
    try:
        with path.open('rb', buffering=0) as file:
            file.seek(start)
            yield from stream(file, leaf)
    except EOFError as error:
        raise UserError(
            f'{path} has become shorter while it was read; save or download it again'
        ) from error


def stream(file: IO[bytes], leaf: jax.ShapeDtypeStruct) -> Iterator[np.ndarray]:
    """The pieces of an array that an open file goes on with; EOFError if it ends too early.

    Each is valid until the next one is asked for. A scalar is a single piece without axes.
    """
    if not leaf.shape:
        yield _fill(file, np.empty(leaf.dtype.itemsize, np.uint8)).view(leaf.dtype).reshape(())
        return
    if 0 in leaf.shape:
        return
    row, count = math.prod(leaf.shape[1:]) * leaf.dtype.itemsize, leaf.shape[0]
    step = min(rows_at_once(leaf), count)
    buffer = np.empty(step * row, np.uint8)
    for first in range(0, count, step):
        rows = min(step, count - first)
        found = _fill(file, buffer[: rows * row])
        yield found.view(leaf.dtype).reshape(rows, *leaf.shape[1:])


def _fill(file: IO[bytes], buffer: np.ndarray) -> np.ndarray:
    view, at = buffer.data, 0
    while at < len(view):
        got = file.readinto(view[at:])  # type: ignore[attr-defined]  # all files here have it
        if not got:
            raise EOFError('it ends too early')
        at += got
    return buffer
