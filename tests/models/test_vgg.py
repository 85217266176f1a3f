"""VGG against Keras: golden/make_keras_vgg.py computed the reference values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxtrain.errors import UserError
from jaxtrain.models.vgg import VGG
from jaxtrain.params.partition import count, flatten, unflatten
from tests.golden.make_keras_vgg import CASES, images
from tests.support.inputs import abstract_variables
from tests.support.keras_files import FULL_TOP, GOLDEN, cached_weight, shapes

DENSE = {'fc1': 'head/dense_0', 'fc2': 'head/dense_1', 'predictions': 'head/logits'}
LIGHT = [case for case, (*_, units) in CASES.items() if units != FULL_TOP]
HEAVY = [case for case in CASES if case not in LIGHT]
FP64, FP32 = 1e-12, 1e-5


@pytest.fixture(scope='module')
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / 'keras_vgg.npz'))


def parameters(case: str) -> dict[str, np.ndarray]:
    """Path -> float32."""
    depth, height, width, units = CASES[case]
    wanted = shapes(depth, units, (height // 32) * (width // 32) * 512)
    return {
        f'{DENSE.get(layer, f"backbone/{layer}")}/{name}': cached_weight(layer, name, shape)
        for (layer, name), shape in wanted.items()
    }


def outputs(case: str, params: dict[str, np.ndarray], dtype: str) -> np.ndarray:
    """The outputs of our model for a case, in the form of the golden values."""
    depth, height, width, units = CASES[case]
    tree = unflatten({path: leaf.astype(dtype) for path, leaf in params.items()})
    x = images(height, width).astype(dtype)
    if units:
        model = VGG(units[-1], depth, hidden=units[:-1])
        return np.asarray(jax.jit(lambda p, x: model.apply({'params': p}, x, train=False))(tree, x))

    def features(params, x, kind):
        model = VGG(1, depth, features=kind)
        return model.apply({'params': params}, x, method=lambda m, x: m.backbone(x))

    both = jax.jit(lambda p, x: [features(p, x, kind) for kind in ('mean', 'flatten')])
    mean, flat = map(np.asarray, both(tree, x))
    return np.stack([mean, flat.reshape(len(x), -1, 512).max(1)])


def error(result: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def fp64_error(case: str, params: dict[str, np.ndarray], golden: dict) -> float:
    with jax.enable_x64(True):
        result = outputs(case, params, 'f8')
    assert result.dtype == np.float64
    return error(result, golden[case])


@pytest.mark.parametrize(
    'case', [pytest.param(c, marks=[pytest.mark.slow] * c.startswith('vgg19')) for c in LIGHT]
)
def test_output_agrees_with_keras(case, golden):
    params = parameters(case)
    if '150' not in case:
        assert fp64_error(case, params, golden) <= FP64
    assert error(outputs(case, params, 'f4'), golden[case]) <= FP32


@pytest.mark.slow
@pytest.mark.parametrize('case', HEAVY)
def test_output_agrees_with_keras_at_full_size(case, golden):
    params = parameters(case)
    assert fp64_error(case, params, golden) <= FP64
    assert error(outputs(case, params, 'f4'), golden[case]) <= FP32


def exchanged(params):
    other = {'block5_conv2': 'block5_conv3', 'block5_conv3': 'block5_conv2'}
    parts = ((path.split('/'), leaf) for path, leaf in params.items())
    return {'/'.join(other.get(part, part) for part in path): leaf for path, leaf in parts}


def changed(params, end, change):
    return {path: change(leaf) if path.endswith(end) else leaf for path, leaf in params.items()}


def channels_first(kernel):
    return kernel.reshape(3, 3, 512, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)


@pytest.mark.parametrize(
    'wrong',
    [
        exchanged,
        lambda params: changed(params, 'dense_0/kernel', channels_first),
        lambda params: changed(params, 'conv3/kernel', lambda k: k.transpose(1, 0, 2, 3)),
        lambda params: changed(params, 'block1_conv1/kernel', lambda k: k[:, :, ::-1]),
        lambda params: changed(params, 'block5_conv3/bias', np.zeros_like),
    ],
    ids=['layers exchanged', 'flatten order', 'height for width', 'channel order', 'no bias'],
)
def test_wrong_weights_exceed_the_tolerance(wrong, golden):
    """The error is so large that the tests above fail in both precisions."""
    case = 'vgg16_top_97x120'
    assert error(outputs(case, wrong(parameters(case)), 'f4'), golden[case]) > 100 * FP32


def test_padding_on_the_wrong_side_exceeds_the_tolerance(golden):
    def shift(call, args, kwargs, context):
        if context.method_name == '__call__' and '_conv' in (context.module.name or ''):
            x = jnp.pad(args[0], ((0, 0), (1, 0), (1, 0), (0, 0)))[:, :-1, :-1]
            args = (x, *args[1:])
        return call(*args, **kwargs)

    case = 'vgg16_notop_97x65'
    with nn.intercept_methods(shift):
        assert error(outputs(case, parameters(case), 'f4'), golden[case]) > 100 * FP32


@pytest.mark.parametrize(
    ('depth', 'total'), [(11, 132_863_336), (13, 133_047_848), (16, 138_357_544), (19, 143_667_240)]
)
def test_number_of_parameters_is_as_published(depth, total):
    params, stats = abstract_variables(VGG(1000, depth), (224, 224, 3))
    assert count(params) == total
    assert stats == {}


def test_layers_are_named_as_in_keras():
    params, _ = abstract_variables(VGG(5, 19, hidden=(7,)), (32, 32, 3))
    layers = {path.rsplit('/', 1)[0] for path in flatten(params)}
    convs = {
        f'backbone/block{b}_conv{i + 1}' for b in range(1, 6) for i in range(2 if b < 3 else 4)
    }
    assert layers == convs | {'head/dense_0', 'head/logits'}


@pytest.mark.parametrize(('features', 'width'), [('flatten', 3 * 2 * 512), ('mean', 512)])
def test_features(features, width):
    params, _ = abstract_variables(VGG(5, 11, (), features=features), (96, 64, 1))
    assert params['head']['logits']['kernel'].shape == (width, 5)


def test_widths():
    params, _ = abstract_variables(VGG(5, 11, (), widths=(2, 3, 4, 5, 6)), (32, 32, 1))
    kernels = {path: x.shape for path, x in flatten(params).items() if path.endswith('kernel')}
    assert kernels['backbone/block1_conv1/kernel'] == (3, 3, 1, 2)
    assert kernels['backbone/block3_conv2/kernel'] == (3, 3, 4, 4)
    assert kernels['backbone/block5_conv1/kernel'] == (3, 3, 5, 6)
    assert kernels['head/logits/kernel'] == (6, 5)


@pytest.mark.slow
def test_remat_changes_neither_results_nor_names():
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype('f4')
    plain = VGG(5, 11, (), widths=(2, 3, 4, 5, 6))
    remat = plain.clone(remat='full')
    init = jax.jit(lambda made: made.init(jax.random.key(0), x, train=False), static_argnums=0)
    jax.tree.map(np.testing.assert_array_equal, init(plain), init(remat))
    variables = init(plain)

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(made, variables):
        return jax.value_and_grad(lambda v: (made.apply(v, x, train=True) ** 2).sum())(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        gradients(remat, variables),
        gradients(plain, variables),
    )
    text = str(jax.make_jaxpr(lambda v: remat.apply(v, x, train=True))(variables))
    assert text.count('checkpoint[') + text.count('remat2[') == 5


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        (
            {'widths': (2,)},
            ['config.model.widths=(2,)', '1 numbers', 'give 5'],
        ),
        ({'depth': 17}, ['config.model.depth=17', '11, 13, 16, 19']),
        (
            {'features': 'sum'},
            ["config.model.features='sum'", 'flatten, mean'],
        ),
    ],
)
def test_wrong_choice(fields, words):
    with pytest.raises(UserError) as caught:
        abstract_variables(VGG(5, **fields), (32, 32, 3))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize('features', ['flatten', 'mean'])
def test_images_that_leave_no_position_are_refused(features):
    with pytest.raises(UserError) as caught:
        abstract_variables(VGG(5, features=features), (64, 31, 3))
    words = 'config.model: VGG cannot take images of size 64x31x3: no pixels are left after block'
    assert str(caught.value).startswith(words)
