"""Opening archives: the choice of the file, and its format, which the content decides."""

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxtrain.weights.formats import blocks, h5
from jaxtrain.weights.formats.archive import open_archive
from tests.support.pth_files import tensor, write_stream, write_zip
from tests.support.spoiling import contents, fault, same, survives

ARRAYS = {'a/kernel': np.arange(6, dtype='f4').reshape(2, 3), 'b': np.ones((4,), 'f2')}


def write_h5(path: Path, arrays: dict[str, np.ndarray], **options) -> Path:
    """Write a file as Keras 2 does, with one layer per array, in the group of its layer."""
    with h5py.File(path, 'w') as file:
        file.attrs['layer_names'] = [key.split('/')[0].encode() for key in arrays]
        for key, array in arrays.items():
            layer = file.create_group(key.split('/')[0])
            layer.attrs['weight_names'] = [b'kernel:0']
            layer.create_dataset('kernel:0', data=array, **(options if array.size else {}))
    return path


def write(kind: str, path: Path) -> Path:
    if kind == 'safetensors':
        save_file(ARRAYS, path)
    elif kind == 'npz':
        with path.open('wb') as file:
            np.savez(file, **ARRAYS)
    elif kind == 'h5':
        write_h5(path, ARRAYS)
    else:
        writer = write_zip if kind == 'pth' else write_stream
        writer(path, {key: tensor(array) for key, array in ARRAYS.items()})
    return path


KINDS = ('safetensors', 'npz', 'pth', 'stream', 'h5')


@pytest.mark.parametrize('name', ['weights', 'a.dat', 'a.npz', 'a.safetensors', 'a.bin', 'a.H5'])
@pytest.mark.parametrize('kind', KINDS)
def test_content_decides_the_format(kind, name, tmp_path):
    path = write(kind, tmp_path / name)
    with open_archive(path) as archive:
        wanted = {'h5': 'tf-keras', 'stream': 'pth'}.get(kind, kind)
        assert (archive.format, archive.files, archive.folder) == (wanted, (path,), tmp_path)
    arrays = contents(path).values()
    for array, expected in zip(arrays, ARRAYS.values(), strict=True):
        assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize('data', [b'', b'hello, these are no weights\n', bytes(100)])
def test_unknown_format(data, tmp_path):
    path = tmp_path / 'README.md'
    path.write_bytes(data)
    assert f'{path} has no supported format (.safetensors, .npz' in fault(path)


@pytest.mark.parametrize(
    'suffix, message',
    [
        ('.safetensors', 'is not a complete safetensors file'),
        ('.npz', 'is not a complete npz file'),
        ('.h5', 'is not a complete HDF5 or .keras file'),
        ('.keras', 'is not a complete HDF5 or .keras file'),
        ('.pth', 'is not a complete file of torch.save'),
        ('.bin', 'is not a complete file of torch.save'),
        ('.NPZ', 'is not a complete npz file'),
    ],
)
def test_suffix_decides_the_format_of_a_damaged_file(suffix, message, tmp_path):
    """An example is the pointer that Git LFS leaves if a file was not downloaded."""
    path = tmp_path / f'model{suffix}'
    path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n')
    assert message in fault(path)


@pytest.mark.parametrize('kind', ['npz', 'pth'])
def test_truncated_zip_archive(kind, tmp_path):
    path = write(kind, tmp_path / 'weights')
    path.write_bytes(path.read_bytes()[:-30])
    assert f'{path} cannot be read (File is not a zip file)' in fault(path)


def test_file_without_read_permission(tmp_path, monkeypatch):
    path = write('pth', tmp_path / 'a.pth')

    def refuse(*_, **__):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(Path, 'open', refuse)
    assert f'{path} cannot be read (Permission denied)' in fault(path)


# Folders.


def test_folder_with_one_weights_file(tmp_path):
    """Other files are ignored, even those whose suffix is that of weights."""
    write('safetensors', tmp_path / 'model.safetensors')
    for name in ('config.json', 'training_args.bin', 'optimizer.pt', '.hidden.pth', 'notes.txt'):
        (tmp_path / name).write_text('{}')
    (tmp_path / 'onnx.bin').mkdir()
    same(contents(tmp_path), ARRAYS)
    with open_archive(tmp_path) as archive:
        assert archive.path == tmp_path
        assert archive.files == (tmp_path / 'model.safetensors',)


def test_folder_without_weights(tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    write('pth', tmp_path / 'optimizer.pt')
    message = fault(tmp_path)
    assert f'{tmp_path} holds no weights (.safetensors, .npz, ' in message
    assert 'give the weights file or its folder' in message


def test_folder_with_several_weights_files(tmp_path):
    write('pth', tmp_path / 'pytorch_model.bin')
    write('safetensors', tmp_path / 'model.safetensors')
    message = (
        f'{tmp_path} holds several weights files: model.safetensors, pytorch_model.bin; give one'
    )
    assert message in fault(tmp_path)
    for i in range(4):
        write('npz', tmp_path / f'z{i}.npz')
    assert 'pytorch_model.bin, z0.npz, z1.npz ...; give' in fault(tmp_path)


def test_missing_path(tmp_path):
    assert f'{tmp_path}/none does not exist; give a weights file' in fault(tmp_path / 'none')


# HDF5. test_h5.py tests its layouts.


@pytest.fixture
def keras(tmp_path) -> Path:
    arrays = {
        'conv': np.random.RandomState(0).standard_normal((37, 5, 9)).astype('f4'),
        'empty': np.zeros((0, 3), 'f4'),
        'scalar': np.array(2.5, 'f8'),
    }
    return write_h5(tmp_path / 'f.h5', arrays)


def test_hdf5_is_read_in_pieces(keras, monkeypatch):
    whole = contents(keras)
    assert [array.shape for array in whole.values()] == [(37, 5, 9), (0, 3), ()]
    monkeypatch.setattr(blocks, 'BYTES', 1000)
    lengths = []
    read = h5.read

    def recording(file, path, address, out, first=0):
        lengths.append(len(out) if out.ndim else 1)
        read(file, path, address, out, first)

    monkeypatch.setattr(h5, 'read', recording)
    same(contents(keras), whole)
    assert max(lengths) == 5 and sum(lengths) == 37 + 1


def test_hdf5_that_is_not_numeric(tmp_path):
    path = write_h5(tmp_path / 'f.h5', {'a': np.ones(2, 'f4')})
    with h5py.File(path, 'r+') as file:
        file['words'] = 'of a text'
    assert ': words has the dtype object, which is not numeric' in fault(path)
    with h5py.File(path, 'r+') as file:
        del file['words']
        file['nothing'] = h5py.Empty('f4')
    assert ': nothing has the dtype float32, which is not numeric' in fault(path)


@pytest.mark.parametrize(
    'names',
    [np.array([1, 2]), np.array([b'\xff']), [b'a', b'none'], 3],
)
def test_hdf5_with_invalid_attributes(names, tmp_path):
    path = write_h5(tmp_path / 'f.h5', {'a': np.ones(2, 'f4')})
    with h5py.File(path, 'r+') as file:
        file.attrs['layer_names'] = names
    assert f'{path} is damaged (' in fault(path)


def test_damaged_hdf5(keras):
    survives(keras)


def test_damaged_keras_archive(keras, tmp_path):
    path = tmp_path / 'model.keras'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.write(keras, 'model.weights.h5')
    survives(path)
