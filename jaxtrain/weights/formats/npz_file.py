"""npz: NumPy's archive of arrays, read one at a time and without pickles."""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from numpy.lib import format as npy

from jaxtrain.errors import UserError
from jaxtrain.weights.formats import blocks


def read_header(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Key -> shape and dtype.

    Raises:
      UserError: not a whole npz file, or one with objects or texts in it; objects only a pickle
        could restore.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                key = info.filename.removesuffix('.npy')
                if key in found:
                    raise UserError(f'{path} holds {key} twice; save it again')
                with archive.open(info) as file:
                    found[key] = shape, _, dtype = _header(file)
                    size = info.file_size - file.tell()
                whole = min(shape, default=0) >= 0 and math.prod(shape) * dtype.itemsize == size
                if not whole and not dtype.hasobject:
                    raise ValueError(f'{key} is not as long as its header says')
    except UserError:
        raise
    except Exception as error:  # a damaged archive raises anything
        raise _damaged(path, error) from error
    for key, (_, _, dtype) in found.items():
        if dtype.hasobject:
            raise UserError(
                f'{path}: {key} holds Python objects, which take a pickle to read, and that may '
                'run code; save plain arrays with numpy.savez'
            )
        if dtype.kind not in 'fiub':
            raise UserError(
                f'{path}: {key} is of dtype {dtype}, which is no number; save it without that'
            )
    return {key: jax.ShapeDtypeStruct(shape, dtype) for key, (shape, _, dtype) in found.items()}


def read(path: Path, key: str) -> Iterator[np.ndarray]:
    """The pieces of an array, as `blocks.stream` yields them. UserError if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            with archive.open(key if key in names else f'{key}.npy') as file:
                shape, columns_first, dtype = _header(file)
                if columns_first and len(shape) > 1:
                    whole = np.frombuffer(file.read(), dtype, math.prod(shape))
                    yield whole.reshape(shape[::-1]).T
                else:
                    yield from blocks.stream(file, jax.ShapeDtypeStruct(shape, dtype))
    except Exception as error:
        raise _damaged(path, error) from error


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether columns lie one after the other, dtype); what follows is the array."""
    version = npy.read_magic(file)
    read_rest = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read_rest(file)


def _damaged(path: Path, error: Exception) -> UserError:
    reason = ' '.join(str(error).split()) or type(error).__name__
    return UserError(f'{path} is not a whole npz file ({reason}); save or download it again')
