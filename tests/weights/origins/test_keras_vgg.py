"""The name map of Keras's VGG, which refuses ambiguous files instead of guessing."""

from pathlib import Path

import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.models.vgg import convolutions
from jaxtrain.weights.formats import h5
from jaxtrain.weights.formats.h5 import Layer, Layout
from jaxtrain.weights.origins import keras_config, keras_vgg
from jaxtrain.weights.schemas.schema import Given
from tests.support.keras_files import FULL_TOP, LAYOUTS, cached_weight, shapes, write

DENSE = {'dense_0': 'fc1', 'dense_1': 'fc2', 'logits': 'predictions'}
FILE = Path('some.h5')
NOTHING = keras_config.stated(Given(), 'some.h5', None)


def matched(path, model='vgg16') -> keras_vgg.VGGMatch:
    with h5.open_file(path) as file:
        return keras_vgg.match(h5.read_layout(file, path), model, path, NOTHING)


@pytest.mark.parametrize('kind', LAYOUTS)
def test_each_parameter_gets_its_array(kind, tmp_path):
    """The arrays are bit-identical in each layout."""
    units = (24, 16, 10)
    path = write(tmp_path / 'vgg.h5', kind, 16, units, 9 * 512)
    result = matched(path)
    assert result.fields == {
        'name': 'vgg', 'depth': 16, 'features': 'flatten', 'hidden': (24, 16),
    }  # fmt: skip
    assert (result.outputs, result.image_size, result.ignored) == (10, (96, 96), ())
    wanted = shapes(16, units, 9 * 512)
    assert len(result.sources) == len(wanted)
    with h5.open_file(path) as file:
        for target, address in result.sources.items():
            module, name = target.split('/')[1:]
            layer = DENSE.get(module, module)
            out = np.empty(wanted[layer, name], np.float32)
            h5.read(file, path, address, out)
            np.testing.assert_array_equal(out, cached_weight(layer, name, out.shape), target)


@pytest.mark.parametrize('depth', [16, 19])
@pytest.mark.parametrize('units', [(), FULL_TOP], ids=['notop', 'top'])
@pytest.mark.parametrize('kind', LAYOUTS)
def test_files_of_full_size(kind, units, depth, tmp_path):
    path = write(tmp_path / 'vgg.h5', kind, depth, units, value=None)
    result = matched(path, f'vgg{depth}')
    heads = {t for t in result.sources if t.startswith('head/')}
    assert len(result.sources) - len(heads) == 2 * len(convolutions(depth))
    assert (result.outputs, len(heads)) == ((1000, 6) if units else (0, 0))
    assert result.image_size == ((224, 224) if units else ())


def model(convs, dense=(), between=('flatten',), width=512, extra=(), shapes=()):
    """Return a layout with layers of these names."""
    names = {name: (3, 3, 8, 8) for name in convs}
    for name in dense:
        names[name], width = (width, 7), 7
    layers = [Layer('input_1', 'input', '', ())]
    layers += [_layer(name, True) for name in convs]
    layers += [_layer(name, False) for name in between]
    layers += [_layer(name, True) for name in [*dense, *extra]]
    sizes = dict(shapes)
    for name, shape in names.items():
        sizes |= {f'{name}/kernel': shape, f'{name}/bias': shape[-1:]}
    sizes |= {f'{name}/{part}': (1,) for name in extra for part in ('kernel', 'bias')}
    return Layout('keras3', tuple(layers), sizes, {})


def _layer(name: str, filled: bool, parent: str = '') -> Layer:
    arrays = (f'{name}/kernel', f'{name}/bias') if filled else ()
    return Layer(name, name.rstrip('_0123456789') if '_conv' not in name else name, parent, arrays)


AUTO = ['conv2d', *(f'conv2d_{i}' for i in range(1, 13))]
VGG16 = convolutions(16)


def fault(layout, name='vgg16') -> str:
    with pytest.raises(UserError) as caught:
        keras_vgg.match(layout, name, FILE, NOTHING)
    assert '\n' not in str(caught.value) and 'some.h5' in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('convs', [VGG16, VGG16[::-1]])
def test_known_names_are_mapped_in_any_order(convs):
    result = keras_vgg.match(model(convs, ['fc1', 'fc2', 'predictions']), 'vgg16', FILE, NOTHING)
    assert result.sources['backbone/block1_conv2/kernel'] == 'block1_conv2/kernel'
    assert result.sources['head/dense_1/bias'] == 'fc2/bias'
    (square,) = result.assumed
    assert '32x32' in square and result.named


def test_generated_names_are_mapped_by_order():
    result = keras_vgg.match(model(AUTO, ['dense_5', 'dense_6']), 'vgg16', FILE, NOTHING)
    names = [result.sources[f'backbone/{name}/kernel'] for name in VGG16]
    assert names == [f'{name}/kernel' for name in AUTO]
    assert result.sources['head/dense_0/kernel'] == 'dense_5/kernel'
    assert result.sources['head/logits/kernel'] == 'dense_6/kernel'
    order, activation, images = result.assumed
    assert 'order of VGG' in order and 'ReLU' in activation and '32x32' in images


@pytest.mark.parametrize(
    ('between', 'width', 'expected'),
    [
        (['flatten'], 512 * 49, ('flatten', (224, 224))),
        (['flatten_1', 'dropout'], 512 * 16, ('flatten', (128, 128))),
        (['flatten'], 512, ('flatten', (32, 32))),
        (['global_average_pooling2d'], 512, ('mean', (224, 224))),
        (['global_max_pooling2d'], 512, ('max', (224, 224))),
    ],
)
def test_how_features_reach_the_top(between, width, expected):
    result = keras_vgg.match(model(VGG16, ['dense'], between, width), 'vgg16', FILE, NOTHING)
    assert (result.fields['features'], result.image_size) == expected


@pytest.mark.parametrize(
    ('layout', 'words'),
    [
        (model(VGG16, ['dense'], []), 'does not say whether the 512 features are flattened or'),
        (
            model(VGG16, ['fc1', 'fc2', 'predictions'], width=512 * 35),
            "layer 'fc1' takes 17920 features, which are not the 512 channels of a square image",
        ),
        (model(VGG16, ['fc1', 'fc2', 'predictions'], width=500), "'fc1' takes 500 features"),
        (model(VGG16, ['fc1', 'predictions']), 'the top lacks the layers fc2'),
        (model(VGG16, ['fc1', 'fc2', 'predictions', 'dense']), "layer 'dense' is not part of"),
        (model(VGG16, extra=['batch_normalization']), "layer 'batch_normalization' is not part"),
        (model(VGG16, ['dense'], ['flatten', 'rescaling']), "layer 'rescaling' is not part of"),
        (model(VGG16[:-1]), 'of its 13 convolutions it lacks 1 (block5_conv3), and its 12 layers'),
        (model(AUTO[:-1]), 'of its 13 convolutions it lacks 13 (block1_conv1, block1_conv2, block'),
        (model([*VGG16[:-1], 'conv2d']), 'it lacks 1 (block5_conv3)'),
        (model(convolutions(19)), 'some.h5 holds vgg19, not vgg16; give --model=vgg19'),
        (model(VGG16, shapes={'stray': (3,)}.items()), 'array stray belongs to no layer of VGG'),
    ],
)
def test_ambiguous_files_are_refused(layout, words):
    assert words in fault(layout)


def test_vgg16_is_suggested_for_vgg19():
    assert 'give --model=vgg16' in fault(model(VGG16), 'vgg19')


def test_order_across_models_is_refused():
    layout = model(AUTO, ['dense', 'dense_1'])
    for name, words in {'dense': 'dense layers are in several', 'conv2d': 'it lacks 13'}.items():
        moved = tuple(
            _layer(name, True, 'layers/functional') if layer.name == name else layer
            for layer in layout.layers
        )
        assert words in fault(Layout(layout.name, moved, layout.shapes, {}))


def test_a_layer_without_bias_is_refused():
    layout = model(VGG16)
    layers = tuple(
        Layer(la.name, la.kind, '', la.arrays[:1]) if la.name == 'block2_conv1' else la
        for la in layout.layers
    )
    assert "layer 'block2_conv1' has 1 array(s) of dimensions [4], not a kernel" in fault(
        Layout(
            'keras3',
            layers,
            {a: s for a, s in layout.shapes.items() if a != 'block2_conv1/bias'},
            {},
        )
    )


def test_optimizer_and_random_state_are_ignored_by_name():
    state = (
        'optimizer/vars/3',
        'optimizer_weights/Adam/m:0',
        'layers/dropout/seed_generator/vars/0',
    )
    result = keras_vgg.match(
        model(VGG16, shapes=[(name, (2,)) for name in state]), 'vgg16', FILE, NOTHING
    )
    assert result.ignored == state
