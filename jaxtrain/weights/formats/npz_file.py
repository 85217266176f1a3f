"""The npz format: NumPy's archive of arrays, read one at a time and without pickle."""

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
    """Return the shape and dtype of every array by key.

    Raises:
      UserError: the file is not a complete npz file, or holds objects, which only pickle could
        restore, or other arrays that are not numeric.
    """
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                key = info.filename.removesuffix('.npy')
                if key in headers:
                    raise UserError(f'{path} holds {key} twice; save the file again')
                with archive.open(info) as file:
                    headers[key] = shape, _, dtype = _header(file)
                    size = info.file_size - file.tell()
                complete = min(shape, default=0) >= 0 and math.prod(shape) * dtype.itemsize == size
                if not complete and not dtype.hasobject:
                    raise ValueError(f'the length of {key} disagrees with its header')
    except UserError:
        raise
    except Exception as error:  # a damaged archive raises anything
        raise _damaged(path, error) from error
    for key, (_, _, dtype) in headers.items():
        if dtype.hasobject:
            raise UserError(
                f'{path}: {key} holds Python objects; reading them requires pickle, which may '
                'run code; save plain arrays with numpy.savez'
            )
        if dtype.kind not in 'fiub':
            raise UserError(
                f'{path}: {key} has the dtype {dtype}, which is not numeric; '
                'save the file without it'
            )
    return {key: jax.ShapeDtypeStruct(shape, dtype) for key, (shape, _, dtype) in headers.items()}


def read(path: Path, key: str) -> Iterator[np.ndarray]:
    """Yield the pieces of an array, as `blocks.stream` does. UserError if the file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            with archive.open(key if key in names else f'{key}.npy') as file:
                shape, fortran, dtype = _header(file)
                if fortran and len(shape) > 1:
                    whole = np.frombuffer(file.read(), dtype, math.prod(shape))
                    yield whole.reshape(shape[::-1]).T
                else:
                    yield from blocks.stream(file, jax.ShapeDtypeStruct(shape, dtype))
    except Exception as error:
        raise _damaged(path, error) from error


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read (shape, whether the order is Fortran's, dtype), up to the first byte of the array."""
    version = npy.read_magic(file)
    read_rest = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read_rest(file)


def _damaged(path: Path, error: Exception) -> UserError:
    reason = ' '.join(str(error).split()) or type(error).__name__
    return UserError(f'{path} is not a complete npz file ({reason}); save or download it again')
