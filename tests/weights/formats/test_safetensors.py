"""The safetensors format, in one file and in shards: reading, and refusal of invalid files."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxtrain.weights.formats import blocks
from tests.support.spoiling import contents, fault, same, survives

DTYPES = ('f8', 'f4', 'f2', ml_dtypes.bfloat16, 'i8', 'i4', 'i2', 'i1', 'u8', 'u4', 'u2', 'u1', '?')


def some() -> dict[str, np.ndarray]:
    """Return arrays of all kinds, in the order in which the library writes them."""
    return {
        'x': np.arange(6, dtype='f4').reshape(2, 3),
        'empty': np.zeros((0, 3), 'f4'),
        'scalar': np.array(2.5, 'f4'),
    }


def layout(entries: dict, data: bytes) -> bytes:
    """Return the bytes of a file as the format defines it."""
    header = json.dumps(entries).encode()
    return struct.pack('<Q', len(header)) + header + data


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / 'model.safetensors'
    save_file(some(), path)
    return path


@pytest.mark.parametrize('dtype', DTYPES)
def test_every_dtype(dtype, tmp_path):
    array = (np.arange(12).reshape(3, 4) % 7 - (np.dtype(dtype).kind in 'fi')).astype(dtype)
    save_file({'a': array, 'b': array[1:]}, tmp_path / 'f.safetensors')
    same(contents(tmp_path / 'f.safetensors'), {'a': array, 'b': array[1:]})


def test_scalars_and_empty_arrays(file):
    result = contents(file)
    same({key: result[key] for key in some()}, some())


def test_bytes_written_by_hand(tmp_path):
    entries = {
        '__metadata__': {'format': 'pt'},
        'b': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [4, 8]},
        'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]},
    }
    path = tmp_path / 'f.safetensors'
    path.write_bytes(layout(entries, struct.pack('<f', 1.5) + b'\x80\x3f\x00\xc0'))
    expected = {'b': np.array([1, -2], ml_dtypes.bfloat16), 'a': np.array([1.5], 'f4')}
    same(contents(path), expected)


def test_large_arrays_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, 'BYTES', 1000)
    array = np.random.RandomState(0).standard_normal((37, 5, 9)).astype('f4')
    save_file({'a': array, 'b': array[0]}, tmp_path / 'f.safetensors')
    same(contents(tmp_path / 'f.safetensors'), {'a': array, 'b': array[0]})


def test_truncated_file(file):
    data = file.read_bytes()
    (length,) = struct.unpack('<Q', data[:8])
    for size in (0, 5, 8, 8 + length // 2, 8 + length, len(data) - 1):
        file.write_bytes(data[:size])
        assert 'is not a complete safetensors file (' in fault(file), size


def test_trailing_bytes(file):
    file.write_bytes(file.read_bytes() + b'\0')
    assert 'is not a complete safetensors file (' in fault(file)


@pytest.mark.parametrize('length', [2**63, 2**40, 10**8 + 1, 0])
def test_absurd_header_length(length, file):
    file.write_bytes(struct.pack('<Q', length) + file.read_bytes()[8:])
    assert 'is not a complete safetensors file (' in fault(file)


@pytest.mark.parametrize(
    'entries',
    [
        {'a': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 8]}},  # more bytes than there are
        {'a': {'dtype': 'F32', 'shape': [-2], 'data_offsets': [0, 8]}},
        {'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [8, 0]}},
        {'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [4, 12]}},
        {'a': {'dtype': 'F32', 'shape': [2**62, 4], 'data_offsets': [0, 8]}},
        {'a': {'shape': [2], 'data_offsets': [0, 8]}},
        {'a': 'F32'},
        [1, 2],
    ],
)
def test_wrong_header(entries, tmp_path):
    path = tmp_path / 'f.safetensors'
    path.write_bytes(layout(entries, bytes(8)))
    assert 'is not a complete safetensors file (' in fault(path)


def test_unsupported_dtype(tmp_path):
    path = tmp_path / 'f.safetensors'
    path.write_bytes(
        layout({'a': {'dtype': 'F8_E4M3', 'shape': [2], 'data_offsets': [0, 2]}}, bytes(2))
    )
    assert ': a has the dtype F8_E4M3, which is not supported; save it as one of' in fault(path)


def test_file_that_shrinks_while_being_read(file, monkeypatch):
    read = blocks.read

    def truncate_and_read(path, leaf, start):
        path.write_bytes(path.read_bytes()[: start + 3])
        yield from read(path, leaf, start)

    monkeypatch.setattr(blocks, 'read', truncate_and_read)
    assert 'became shorter while it was being read' in fault(file, opens=True)


def test_damaged_file(file):
    survives(file)


# Shards.


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a folder of two shards and their index, as on the Hugging Face Hub."""
    arrays = shards()
    for name, part in arrays.items():
        save_file(part, tmp_path / name)
    places = {key: name for name, part in arrays.items() for key in part}
    write_index(tmp_path, places)
    return tmp_path


def shards() -> dict[str, dict[str, np.ndarray]]:
    return {
        'model-1-of-2.safetensors': {'a': np.arange(4, dtype='f4'), 'b': np.ones((2, 2), 'f2')},
        'model-2-of-2.safetensors': {'c': np.full((3,), 7, 'f4')},
    }


def write_index(folder: Path, places: dict) -> Path:
    path = folder / 'model.safetensors.index.json'
    path.write_text(json.dumps({'metadata': {'total_size': 36}, 'weight_map': places}))
    return path


def test_shards_are_one_archive(folder):
    expected = {key: array for part in shards().values() for key, array in part.items()}
    same(contents(folder), expected)
    same(contents(folder / 'model.safetensors.index.json'), expected)


def index_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / 'model.safetensors.index.json').read_text())['weight_map']


def test_missing_shard(folder):
    (folder / 'model-2-of-2.safetensors').unlink()
    assert 'names model-2-of-2.safetensors, which does not exist; download it' in fault(folder)


def test_key_missing_from_its_shard(folder):
    write_index(folder, {**index_of(folder), 'd': 'model-1-of-2.safetensors'})
    assert 'lists d in model-1-of-2.safetensors, which does not hold it' in fault(folder)


def test_key_missing_from_the_index(folder):
    places = index_of(folder)
    del places['b']
    write_index(folder, places)
    assert 'does not list b, which model-1-of-2.safetensors holds' in fault(folder)


def test_truncated_shard(folder):
    shard = folder / 'model-2-of-2.safetensors'
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f'{shard} is not a complete safetensors file' in fault(folder)


@pytest.mark.parametrize(
    'text',
    ['', '{', '[]', '{}', '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": ["a"]}',
     '[' * 5000, '\xff'],
)  # fmt: skip
def test_invalid_index(text, folder):
    index = folder / 'model.safetensors.index.json'
    index.write_bytes(text.encode('latin1'))
    assert 'is not a shard index' in fault(index)
    assert 'is not a shard index' in fault(folder)
