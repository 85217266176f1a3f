"""The npz format: arrays are read piece by piece; pickles and damaged files are refused."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.weights.formats import blocks
from tests.support.spoiling import contents, fault, same, survives


class Trap:
    """An object whose pickle creates a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), 'w')


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / 'weights.npz'
    np.savez(path, **some())
    return path


def some() -> dict[str, np.ndarray]:
    return {
        'params/kernel': np.arange(6, dtype='f4').reshape(2, 3),
        'empty': np.zeros((0, 3), 'f4'),
        'scalar': np.array(2.5, 'f8'),
        'half': np.arange(4).astype('f2'),
        'count': np.array([1, 2], 'i8'),
        'bool': np.array([True, False]),
    }


def npy(header: str, data: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """Return the bytes of a member as the format defines it."""
    text = header.encode() + b'\n'
    return (
        b'\x93NUMPY' + bytes(version) + struct.pack('<H' if version[0] == 1 else '<I', len(text))
        + text + data
    )  # fmt: skip


def member(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.npy', data)
    return path


def test_stored_and_compressed(file, tmp_path):
    same(contents(file), some())
    np.savez_compressed(tmp_path / 'small.npz', **some())
    same(contents(tmp_path / 'small.npz'), some())


def test_large_arrays_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, 'BYTES', 1000)
    array = np.random.RandomState(0).standard_normal((37, 5, 9)).astype('f4')
    np.savez(tmp_path / 'f.npz', rows=array, columns=np.asfortranarray(array), line=array[0, 0])
    result = contents(tmp_path / 'f.npz')
    same(result, {'rows': array, 'columns': array, 'line': array[0, 0]})


def test_other_byte_order(tmp_path):
    np.savez(tmp_path / 'f.npz', a=np.array([1, -2], '>f4'))
    result = contents(tmp_path / 'f.npz')['a']
    assert result.tolist() == [1.0, -2.0]


@pytest.mark.parametrize('version', [(1, 0), (2, 0), (3, 0)])
def test_bytes_written_by_hand(version, tmp_path):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
    path = member(tmp_path / 'f.npz', npy(header, struct.pack('<2f', 1, -2), version))
    same(contents(path), {'a': np.array([1, -2], 'f4')})


def test_objects_are_refused_and_not_unpickled(tmp_path):
    path, target = tmp_path / 'f.npz', tmp_path / 'trapped'
    np.savez(path, fine=np.ones(2), bad=np.array([Trap(target)], object))
    message = fault(path)
    assert ': bad holds Python objects; reading them requires pickle' in message
    assert not target.exists()
    np.load(path, allow_pickle=True)['bad']
    assert target.exists()  # the trap works


@pytest.mark.parametrize('array', [np.array(['a', 'b']), np.zeros(2, 'M8[s]'), np.zeros(2, 'c8')])
def test_array_that_is_not_numeric(array, tmp_path):
    np.savez(tmp_path / 'f.npz', words=array)
    assert f': words has the dtype {array.dtype}, which is not numeric' in fault(tmp_path / 'f.npz')


def test_record_arrays_are_refused(tmp_path):
    np.savez(tmp_path / 'f.npz', a=np.zeros(2, [('x', 'f4'), ('y', 'i4')]))
    assert ': a has the dtype [' in fault(tmp_path / 'f.npz')


@pytest.mark.parametrize(
    'shape', ['(3,)', '(1,)', '(-2, -1)', '(10**30,)', '2', '(2.0,)', '(99999999999999,)']
)
def test_wrong_header(shape, tmp_path):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    path = member(tmp_path / 'f.npz', npy(header, bytes(8)))
    assert 'is not a complete npz file (' in fault(path)


def test_duplicate_key(tmp_path):
    path = tmp_path / 'f.npz'
    buffer = io.BytesIO()
    np.save(buffer, np.ones(2))
    with zipfile.ZipFile(path, 'w') as archive, pytest.warns(UserWarning, match='Duplicate'):
        archive.writestr('a.npy', buffer.getvalue())
        archive.writestr('a.npy', buffer.getvalue())
    assert 'holds a twice' in fault(path)


def test_truncated_file(file):
    data = file.read_bytes()
    for size in (0, 3, 40, len(data) // 2, len(data) - 30, len(data) - 1):
        file.write_bytes(data[:size])
        assert 'save or download it again' in fault(file), size


def test_changed_number_is_detected(file):
    """The checksums of the zip format detect it."""
    data = bytearray(file.read_bytes())
    data[data.index(np.array([3, 4], 'f4').tobytes())] ^= 1
    file.write_bytes(data)
    assert 'is not a complete npz file (Bad CRC-32' in fault(file, opens=True)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_damaged_file(save, tmp_path):
    save(tmp_path / 'f.npz', **some())
    survives(tmp_path / 'f.npz')
