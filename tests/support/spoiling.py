"""Reading of whole weights files, and damage in many places, for the tests of all formats."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.weights.formats.archive import Archive, open_archive


def contents(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file, except for absurd sizes, which a damaged header can claim."""
    with open_archive(path) as archive:
        return {
            key: whole(archive, key)
            for key, leaf in archive.arrays.items()
            if math.prod(leaf.shape) < 2**20
        }


def whole(archive: Archive, key: str) -> np.ndarray:
    """Return an array, concatenated from its pieces."""
    leaf = archive.arrays[key]
    pieces = [piece.copy() for piece in archive.read(key)]
    if not leaf.shape:
        return pieces[0]
    return np.concatenate([np.empty((0, *leaf.shape[1:]), leaf.dtype), *pieces])


def same(result: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Assert that keys, their order, dtypes, shapes and all bits are equal."""
    assert list(result) == list(expected)
    for key, array in expected.items():
        assert (result[key].dtype, result[key].shape) == (array.dtype, array.shape), key
        assert result[key].tobytes() == array.tobytes(), key


def fault(path: Path, opens: bool = False) -> str:
    """Return the one-line error of opening a file, or of reading its arrays if it opens."""
    with pytest.raises(UserError) as caught:
        if opens:
            contents(path)
        else:
            with open_archive(path):
                pass
    message = str(caught.value)
    assert '\n' not in message and str(path) in message
    return message


def damaged(data: bytes, places: int = 100) -> Iterator[bytes]:
    """Yield the file with one byte changed, and truncated, at evenly spaced places."""
    for number in range(places):
        at = number * (len(data) - 1) // (places - 1)
        changed = bytearray(data)
        changed[at] ^= (0xFF, 0x01, 0x80)[number % 3]
        yield bytes(changed)
        yield data[:at]


def survives(path: Path) -> None:
    """Assert that a damaged file is either read or refused with one line."""
    data, refused = path.read_bytes(), 0
    for number, changed in enumerate(damaged(data)):
        path.write_bytes(changed)
        try:
            contents(path)
        except UserError as error:
            assert '\n' not in str(error) and str(path) in str(error)
            refused += 1
        except BaseException as error:
            raise AssertionError(f'change {number} raises {error!r}') from error
    path.write_bytes(data)
    assert refused > 100  # at least every truncated file
