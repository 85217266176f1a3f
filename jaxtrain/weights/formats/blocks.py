"""Reading of arrays piece by piece along their first axis, through one small buffer.

A piece stays in the processor's cache while it is converted, checked and copied to its destination,
and an array is in memory once instead of twice.
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
    """Return the number of rows in a piece, at least one."""
    return max(1, BYTES // max(1, math.prod(leaf.shape[1:]) * leaf.dtype.itemsize))


def read(path: Path, leaf: jax.ShapeDtypeStruct, start: int) -> Iterator[np.ndarray]:
    """Yield the pieces of an array that starts at byte `start` of a file, as `stream` does.

    Raises:
      UserError: the file ends before the array does.
    """
    try:
        with path.open('rb', buffering=0) as file:
            file.seek(start)
            yield from stream(file, leaf)
    except EOFError as error:
        raise UserError(
            f'{path} became shorter while it was being read; save or download it again'
        ) from error


def stream(file: IO[bytes], leaf: jax.ShapeDtypeStruct) -> Iterator[np.ndarray]:
    """Yield the pieces of the array at the current position of an open file.

    Each piece is valid until the next one is requested. A scalar is a single piece without axes.

    Raises:
      EOFError: the file ends before the array does.
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
        piece = _fill(file, buffer[: rows * row])
        yield piece.view(leaf.dtype).reshape(rows, *leaf.shape[1:])


def _fill(file: IO[bytes], buffer: np.ndarray) -> np.ndarray:
    view, position = buffer.data, 0
    while position < len(view):
        count = file.readinto(view[position:])  # type: ignore[attr-defined]  # every file passed here has it
        if not count:
            raise EOFError('the file ends too early')
        position += count
    return buffer
