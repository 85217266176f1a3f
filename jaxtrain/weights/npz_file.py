"""npz: NumPy's archive of arrays, read one at a time and without pickles."""

import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
from numpy.lib import format as npy

from jaxtrain.errors import UserError


def read_header(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Key -> shape and dtype.

    Raises:
      UserError: not a whole npz file, or one with objects in it, which only a pickle could restore.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                key = name.removesuffix('.npy')
                if key in found:
                    raise UserError(f'{path} holds {key} twice; save it again')
                found[key] = _header(archive, name)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    for key, (_, dtype) in found.items():
        if dtype.hasobject:
            raise UserError(
                f'{path}: {key} holds Python objects, which take a pickle to read, and that may '
                'run code; save plain arrays with numpy.savez'
            )
    return {key: jax.ShapeDtypeStruct(*header) for key, header in found.items()}


def read(path: Path, key: str) -> np.ndarray:
    """One array. UserError if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[key]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(name) as file:
        version = npy.read_magic(file)
        read_rest = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_rest(file)
    return shape, dtype


def _damaged(path: Path, error: Exception) -> UserError:
    reason = ' '.join(str(error).split()) or type(error).__name__
    return UserError(f'{path} is not a whole npz file ({reason}); save or download it again')
