"""Weights files read whole, and files damaged in many places, for the tests of all formats."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.weights.formats.archive import Archive, open_archive


def contents(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, but for those of more numbers than a test's file has bytes."""
    with open_archive(path) as archive:
        return {
            key: whole(archive, key)
            for key, leaf in archive.arrays.items()
            if math.prod(leaf.shape) < 2**20
        }


def whole(archive: Archive, key: str) -> np.ndarray:
    """The pieces of an array put together."""
    leaf = archive.arrays[key]
    pieces = [piece.copy() for piece in archive.read(key)]
    if not leaf.shape:
        return pieces[0]
    return np.concatenate([np.empty((0, *leaf.shape[1:]), leaf.dtype), *pieces])


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Keys, their order, dtypes, shapes and every bit."""
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape), key
        assert found[key].tobytes() == array.tobytes(), key


def fault(path: Path, opens: bool = False) -> str:
    """The one line that a file is refused with: before an array is read, or else after."""
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
    """The file with a byte changed, and cut off, at so many places each, both ends included."""
    for number in range(places):
        at = number * (len(data) - 1) // (places - 1)
        changed = bytearray(data)
        changed[at] ^= (0xFF, 0x01, 0x80)[number % 3]
        yield bytes(changed)
        yield data[:at]


def survives(path: Path) -> None:
    """Damaged in any place, the file is read or refused in a line: nothing else comes out."""
    data, refused = path.read_bytes(), 0
    for number, spoilt in enumerate(damaged(data)):
        path.write_bytes(spoilt)
        try:
            contents(path)
        except UserError as error:
            assert '\n' not in str(error) and str(path) in str(error)
            refused += 1
        except BaseException as error:
            raise AssertionError(f'change {number} raises {error!r}') from error
    path.write_bytes(data)
    assert refused > 100  # at the least wherever it is cut off
