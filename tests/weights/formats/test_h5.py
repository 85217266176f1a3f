"""Keras's HDF5 layouts: the owner of each array, and reading."""

import zipfile

import h5py
import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.models.vgg import convolutions
from jaxtrain.weights.formats import h5
from tests.support.keras_files import FULL_TOP, LAYOUTS, cached_weight, manifest, shapes, write

NAMES = {'tf-keras3': 'keras3'}
TOP = ['fc1', 'fc2', 'predictions']


def layout_of(path) -> h5.Layout:
    with h5.open_file(path) as file:
        return h5.read_layout(file, path)


def fault(path) -> str:
    with pytest.raises(UserError) as caught:
        layout_of(path)
    message = str(caught.value)
    assert '\n' not in message and str(path) in message
    return message


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """Return a Keras 3 legacy file without values."""
    path = tmp_path_factory.mktemp('small') / 'vgg.h5'
    return write(path, 'keras3-legacy', value=None)


@pytest.mark.parametrize('depth', [16, 19])
@pytest.mark.parametrize('units', [(), FULL_TOP], ids=['notop', 'top'])
@pytest.mark.parametrize('kind', LAYOUTS)
def test_layers_are_in_model_order(kind, units, depth, tmp_path):
    path = write(tmp_path / 'vgg.h5', kind, depth, units, value=None)
    layout = layout_of(path)
    assert layout.name == NAMES.get(kind, kind)
    filled = [layer for layer in layout.layers if layer.arrays]
    convs = [layer for layer in filled if len(layout.shapes[layer.arrays[0]]) == 4]
    dense = [layer for layer in filled if layer not in convs]
    if kind != 'tf-keras3':  # its files have no layer names
        assert [layer.name for layer in convs] == convolutions(depth)
        assert [layer.name for layer in dense] == (TOP if units else [])
    wanted = shapes(depth, units)
    order = [*convolutions(depth), *(TOP if units else [])]
    for name, layer in zip(order, [*convs, *dense], strict=True):
        kernel, bias = layer.arrays
        assert layout.shapes[kernel] == wanted[name, 'kernel']
        assert layout.shapes[bias] == wanted[name, 'bias']


def test_layouts_have_the_parameter_count_of_the_paper(tmp_path):
    """The manifests, which several programs wrote, agree on the sizes."""
    for kind in LAYOUTS:
        stored = [shape for shape, _ in manifest(kind, 16, True).values() if shape]
        assert sum(np.prod(shape) for shape in stored) == 138_357_544


def test_attributes_too_long_for_hdf5_are_joined(small, tmp_path):
    """They are joined in numeric order, also if there are more than ten."""
    path = tmp_path / 'vgg.h5'
    path.write_bytes(small.read_bytes())
    whole = layout_of(small).layers
    with h5py.File(path, 'r+') as file:
        root = file['model_weights']
        names = list(root.attrs.pop('layer_names'))
        assert len(names) > 12
        for number, name in enumerate(names):
            root.attrs[f'layer_names{number}'] = [name]
        names = list(root['block1_conv1'].attrs.pop('weight_names'))
        for number, name in enumerate(names):
            root['block1_conv1'].attrs[f'weight_names{number}'] = [name]
    assert layout_of(path).layers == whole


def test_attributes_decide_the_order(small, tmp_path):
    path = tmp_path / 'vgg.h5'
    path.write_bytes(small.read_bytes())
    with h5py.File(path, 'r+') as file:
        root = file['model_weights']
        root.attrs['layer_names'] = list(root.attrs['layer_names'])[::-1]
        conv = root['block1_conv1']
        conv.attrs['weight_names'] = list(conv.attrs['weight_names'])[::-1]
    layers = layout_of(path).layers
    assert [layer.name for layer in layers] == [la.name for la in layout_of(small).layers][::-1]
    first = next(layer for layer in layers if layer.name == 'block1_conv1')
    assert [address.rpartition('/')[2] for address in first.arrays] == ['bias', 'kernel']


@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8'])
def test_read_converts_to_the_requested_dtype(dtype, tmp_path):
    path = write(tmp_path / 'vgg.h5', 'keras1', dtype=dtype)
    address = 'block4_conv1/block4_conv1_W_1:0'
    out = np.empty((3, 3, 256, 512), np.float32)
    with h5.open_file(path) as file:
        h5.read(file, path, address, out)
    expected = cached_weight('block4_conv1', 'kernel', out.shape).astype(dtype).astype('f4')
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_nonfinite_values_are_refused(value, tmp_path):
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as file:
        file['a'] = np.array([0, value, 1], 'f4')
    with h5.open_file(path) as file, pytest.raises(UserError, match='a holds NaN or Inf'):
        h5.read(file, path, 'a', np.empty(3, np.float32))


def test_a_number_too_large_for_float32_is_refused(tmp_path):
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as file:
        file['a'] = np.array([1e39], 'f8')
    with h5.open_file(path) as file, pytest.raises(UserError, match=r'Inf \(as float32\)'):
        h5.read(file, path, 'a', np.empty(1, np.float32))


def test_an_archive_is_read_like_the_file_in_it(small, tmp_path):
    inner = write(tmp_path / 'model.weights.h5', 'keras3', value=None)
    path = tmp_path / 'vgg.keras'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('config.json', '{}')
        archive.write(inner, 'model.weights.h5')
    assert layout_of(path) == layout_of(inner)


def test_not_a_keras_file(small, tmp_path):
    assert f'{tmp_path} is a folder; give the .h5' in fault(tmp_path)
    assert 'none.h5 does not exist; give the .h5' in fault(tmp_path / 'none.h5')
    for name, data in {
        'empty.h5': b'',
        'text.h5': b'weights\n',
        'cut.h5': small.read_bytes()[:5000],
    }.items():
        (tmp_path / name).write_bytes(data)
        assert 'is not a complete HDF5 or .keras file' in fault(tmp_path / name)
    with zipfile.ZipFile(tmp_path / 'other.keras', 'w') as archive:
        archive.writestr('config.json', '{}')
    assert 'is not a complete HDF5 or .keras file' in fault(tmp_path / 'other.keras')


def test_error_for_other_hdf5_files_lists_their_keys(tmp_path):
    path = tmp_path / 'other.h5'
    with h5py.File(path, 'w') as file:
        file['conv1/weight'] = np.zeros(3)
    assert 'holds no weights as Keras saves them (its keys: conv1)' in fault(path)


def test_listed_array_is_missing(small, tmp_path):
    path = tmp_path / 'vgg.h5'
    path.write_bytes(small.read_bytes())
    with h5py.File(path, 'r+') as file:
        del file['model_weights/block3_conv2/block3_conv2/bias']
    message = (
        "layer 'block3_conv2' lists model_weights/block3_conv2/block3_conv2/bias, which is not"
    )
    assert message in fault(path)
    with h5py.File(path, 'r+') as file:
        del file['model_weights/block3_conv2']
    assert 'is damaged' in fault(path)
