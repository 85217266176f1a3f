"""The models: results, numbers of parameters, and config fields."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxtrain.config import Config, base
from jaxtrain.errors import UserError
from jaxtrain.models import MODELS, describe, make_model
from jaxtrain.models.parts.layers import PATCHES_MIB, Head, conv, flat, max_pool
from jaxtrain.params.partition import count, flatten
from tests.support.inputs import abstract_variables


@pytest.fixture(autouse=True, scope='module')
def quickly():
    """Skips optimisation, which would take longer than running these programs.

    It also changes which operations are fused.
    """
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def model(name='cnn', outputs=5, **fields):
    return make_model(Config({'model': {'name': name, **fields}}).model, outputs)


def shapes(made, image=(8, 8, 1)) -> dict[str, tuple]:
    params, _ = abstract_variables(made, image)
    return {path: leaf.shape for path, leaf in flatten(params).items()}


def fault(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


HIDDEN = ('scan_ends', 'axis')  # set by a job, not by a config
IMAGES = [name for name, cls in MODELS.items() if cls.READS == 'image']


@pytest.mark.parametrize('name', IMAGES)
def test_parameters_are_a_backbone_and_a_head(name):
    params, model_state = abstract_variables(model(name), (32, 32, 1))
    assert set(params) == {'backbone', 'head'}
    assert all(set(tree) == {'backbone'} for tree in model_state.values())
    assert shapes(model(name), (32, 32, 1))['head/logits/bias'] == (5,)


@pytest.mark.parametrize('name', IMAGES)
def test_outputs_have_one_row_per_image(name):
    made = model(name)
    images = jnp.zeros((3, 32, 32, 2))
    variables = jax.eval_shape(lambda: made.init(jax.random.key(0), images, train=False))
    out = jax.eval_shape(lambda v: made.apply(v, images, train=False), variables)
    assert (out.shape, out.dtype) == ((3, 5), jnp.float32)


def test_cnn_parameter_shapes():
    norm = shapes(model(widths=(4, 6)), (8, 8, 3))
    assert norm == {
        'backbone/conv_0/kernel': (3, 3, 3, 4),
        'backbone/norm_0/scale': (4,),
        'backbone/norm_0/bias': (4,),
        'backbone/conv_1/kernel': (3, 3, 4, 6),
        'backbone/norm_1/scale': (6,),
        'backbone/norm_1/bias': (6,),
        'head/logits/kernel': (6, 5),
        'head/logits/bias': (5,),
    }
    plain, stats = abstract_variables(model(widths=(4, 6), norm='none'), (8, 8, 3))
    assert count(plain) == (27 * 4 + 4) + (36 * 6 + 6) + (6 * 5 + 5)
    assert stats == {}


@pytest.mark.parametrize(
    ('padding', 'image', 'positions'),
    [
        ('SAME', (8, 8, 1), 4 * 4),
        ('SAME', (9, 7, 1), 4 * 3),
        ('VALID', (8, 8, 1), 1 * 1),  # 8 -> 6 -> 3 -> 1
        ('VALID', (12, 10, 1), 3 * 2),  # 12 -> 10 -> 5 -> 3, 10 -> 8 -> 4 -> 2
    ],
)
def test_flattened_features_keep_every_position(padding, image, positions):
    made = model(widths=(4, 6), padding=padding, features='flatten')
    assert shapes(made, image)['head/logits/kernel'] == (positions * 6, 5)


def test_images_too_small_for_the_model_are_refused():
    made = model(widths=(4, 6), padding='VALID', features='flatten')
    message = fault(abstract_variables, made, (4, 4, 1))
    assert message.startswith('config.model: CNN cannot take images of size 4x4x1')


@pytest.mark.parametrize(('side', 'where'), [(4, ''), (6, 'convolution 1'), (2, '')])
def test_images_that_leave_no_position_are_refused(side, where):
    """6 -> 4 -> 2 -> 0: there would be no positions to average over."""
    message = fault(abstract_variables, model(widths=(4, 6), padding='VALID'), (side, side, 1))
    assert message.startswith(f'config.model: CNN cannot take images of size {side}x{side}x1: ')
    assert where in message


def test_hidden_layers_of_the_head():
    sizes = shapes(model(widths=(4,), hidden=(7, 9)))
    assert {path: shape for path, shape in sizes.items() if path.startswith('head')} == {
        'head/dense_0/kernel': (4, 7),
        'head/dense_0/bias': (7,),
        'head/dense_1/kernel': (7, 9),
        'head/dense_1/bias': (9,),
        'head/logits/kernel': (9, 5),
        'head/logits/bias': (5,),
    }


def test_mlp_parameter_counts():
    params, _ = abstract_variables(model('mlp', hidden=(7, 9)), (4, 3, 2))
    assert count(params['backbone']) == (24 * 7 + 7) + (7 * 9 + 9)
    assert count(params['head']) == 9 * 5 + 5


def filled(made, images, seed=0):
    """Variables with normally distributed parameters and positive statistics."""
    rng = np.random.default_rng(seed)
    params, stats = abstract_variables(made, images.shape[1:])
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), params)
    stats = jax.tree.map(lambda x: rng.uniform(0.5, 2, x.shape).astype(x.dtype), stats)
    return {'params': params, **stats}


@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize('features', ['mean', 'flatten'])
def test_cnn_against_numpy(padding, features):
    images = np.random.default_rng(1).normal(size=(2, 10, 9, 2)).astype(np.float32)
    made = model(widths=(3, 4), padding=padding, features=features)
    variables = filled(made, images)
    params, stats = variables['params'], variables['batch_stats']['backbone']

    def convolve(x, kernel):
        if padding == 'SAME':
            x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
        return np.einsum('bhwcij,ijco->bhwo', windows, kernel)

    x = images.astype(np.float64)
    for i in (0, 1):
        if i:
            h, w = x.shape[1] // 2, x.shape[2] // 2
            x = np.array([[x[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].max((1, 2))
                           for c in range(w)] for r in range(h)]).transpose(2, 0, 1, 3)  # fmt: skip
        norm, running = params['backbone'][f'norm_{i}'], stats[f'norm_{i}']
        x = convolve(x, params['backbone'][f'conv_{i}']['kernel'])
        x = (x - running['mean']) / np.sqrt(running['var'] + 1e-5) * norm['scale'] + norm['bias']
        x = np.maximum(x, 0)
    x = x.mean((1, 2)) if features == 'mean' else x.reshape(len(x), -1)
    expected = x @ params['head']['logits']['kernel'] + params['head']['logits']['bias']
    np.testing.assert_allclose(made.apply(variables, images, train=False), expected, rtol=1e-3)


def test_mlp_against_numpy():
    images = np.random.default_rng(1).normal(size=(3, 2, 2, 1)).astype(np.float32)
    made = model('mlp', hidden=(4, 3))
    variables = filled(made, images)
    params = variables['params']
    x = images.reshape(3, 4)
    for i in (0, 1):
        layer = params['backbone'][f'dense_{i}']
        x = np.maximum(x @ layer['kernel'] + layer['bias'], 0)
    expected = x @ params['head']['logits']['kernel'] + params['head']['logits']['bias']
    np.testing.assert_allclose(made.apply(variables, images, train=False), expected, rtol=1e-4)


def test_head_applies_relu_between_its_layers():
    head = Head(2, hidden=(3,))
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    params = head.init(jax.random.key(0), x, train=False)['params']
    middle = np.maximum(x @ params['dense_0']['kernel'], 0)
    result = head.apply({'params': params}, x, train=False)
    np.testing.assert_allclose(result, middle @ params['logits']['kernel'], atol=1e-5)


@pytest.mark.parametrize(
    'made', [model(widths=(2,), hidden=(64,), dropout=0.5), model('mlp', hidden=(64,), dropout=0.5)]
)
def test_dropout_is_active_only_in_training(made):
    images = np.ones((1, 8, 8, 1), np.float32)
    variables = filled(made, images)

    def out(train, key):
        rngs = {'dropout': jax.random.key(key)}
        result = made.apply(
            variables, images, train=train, rngs=rngs, mutable=['batch_stats'] if train else False
        )
        return np.asarray(result[0] if train else result)

    assert (out(True, 0) != out(True, 1)).any()
    np.testing.assert_array_equal(out(False, 0), out(False, 1))


@pytest.mark.parametrize('window', [2, 3])
@pytest.mark.parametrize('size', [(6, 6), (7, 5), (3, 8)])
def test_max_pool_agrees_with_flax(size, window):
    rng = np.random.default_rng(0)
    count_ = 2 * size[0] * size[1] * 3
    x = rng.permutation(count_).reshape(2, *size, 3).astype(np.float32)  # no ties
    weights = rng.normal(size=(2, size[0] // window, size[1] // window, 3)).astype(np.float32)

    def flax_pool(x):
        return nn.max_pool(x, (window, window), (window, window))

    np.testing.assert_array_equal(max_pool(x, window), flax_pool(x))
    grads = jax.grad(lambda x: (max_pool(x, window) * weights).sum())(x)
    np.testing.assert_array_equal(grads, jax.grad(lambda x: (flax_pool(x) * weights).sum())(x))


def test_max_pool_gradient_of_ties_sums_to_one():
    grads = jax.grad(lambda x: max_pool(x, 2).sum())(jnp.ones((1, 2, 2, 1)))
    assert float(grads.sum()) == pytest.approx(1)
    assert (np.asarray(grads) >= 0).all()


def test_max_pool_gradient_is_finite_if_the_compiler_recomputes_values(quickly):
    """The recomputed values can be rounded differently from those that the maximum was taken of."""
    made = model(widths=(8, 16))
    images = np.random.default_rng(1).normal(size=(8, 6, 6, 1)).astype(np.float32)

    @jax.jit
    def grads(variables):
        def loss(params):
            changed = {**variables, 'params': params}
            return made.apply(changed, images, train=True, mutable=['batch_stats'])[0].var()

        return jax.grad(loss)(variables['params'])

    for seed in range(20):
        leaves = jax.tree.leaves(grads(filled(made, images, seed)))
        assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_flat():
    x = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(flat(jnp.asarray(x)), x.reshape(2, 12))


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'name': 'cnnn'}, ["config.model.name='cnnn'", "'cnn'"]),
        ({'width': (3,)}, ["config.model.width: model 'cnn' has no", "'widths'"]),
        ({'parent': None}, ["config.model.parent: model 'cnn' has no such field"]),
        ({'axis': 'x'}, ["config.model.axis: model 'cnn' has no such field"]),
        ({'name': 'gpt', 'scan_ends': ()}, ["config.model.scan_ends: model 'gpt' has no such fi"]),
        ({'widths': 3}, ['config.model.widths=3 is not a tuple, like the default (32, 64, 128)']),
        ({'norm': 1}, ["config.model.norm=1 is not a str, like the default 'batch'"]),
        ({'dropout': True}, ['config.model.dropout=True is not a float']),
        ({'dropout': '0.1'}, ["config.model.dropout='0.1' is not a float"]),
        ({'name': 'mlp', 'widths': (3,)}, ["model 'mlp' has no such field", 'it has hidden, drop']),
    ],
)
def test_wrong_field(fields, words):
    message = fault(model, **fields)
    assert all(word in message for word in words), message


def test_outputs_is_not_a_config_field():
    cfg = Config({'model': {'name': 'cnn', 'outputs': 3}}).model
    assert "config.model.outputs: model 'cnn' has no such field" in fault(make_model, cfg, 5)


def test_an_integer_is_accepted_for_a_float_field():
    assert model(dropout=0).dropout == 0


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'norm': 'layer'}, ["config.model.norm='layer' is not known", 'choose from batch, none']),
        ({'padding': 'same'}, ["config.model.padding='same'", 'SAME, VALID']),
        ({'features': 'max'}, ["config.model.features='max'", 'mean, flatten']),
    ],
)
def test_wrong_choice(fields, words):
    message = fault(abstract_variables, model(**fields), (8, 8, 1))
    assert all(word in message for word in words), message


@pytest.mark.parametrize('name', MODELS)
def test_describe_lists_every_field(name):
    made = model(name, dropout=0.25)
    fields = describe(made)
    declared = [f.name for f in dataclasses.fields(MODELS[name])]
    assert set(fields) == {'name', *declared} - {'parent', 'outputs', *HIDDEN}
    assert (fields['name'], fields['dropout']) == (name, 0.25)
    defaults = {f: v for f, v in fields.items() if f not in ('name', 'dropout')}
    assert all(value == getattr(MODELS[name], f) for f, value in defaults.items())
    again = make_model(Config({'model': fields}).model, 5)
    assert again == made


def test_the_default_model_has_the_defaults_of_its_class():
    assert describe(make_model(Config(base().to_dict()).model, 3)) == {
        'name': 'cnn',
        **{f.name: f.default for f in dataclasses.fields(MODELS['cnn'])
           if f.name not in ('parent', 'name', 'outputs', *HIDDEN)},
    }  # fmt: skip


@pytest.mark.parametrize('padding', ['VALID', 'SAME'])
@pytest.mark.parametrize('window, size', [(3, (9, 11)), (5, (7, 7)), (3, (3, 3)), (1, (4, 4))])
def test_convolution_agrees_with_flax(padding, window, size):
    """Parameter shapes, values and gradients agree, however the convolution is computed."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    layer, plain = conv(4, window, padding), nn.Conv(4, (window, window), padding=padding)
    variables = plain.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, layer.init(jax.random.key(0), x)) == jax.tree.map(
        jnp.shape, variables
    )
    weights = jnp.asarray(rng.normal(size=plain.apply(variables, x).shape), jnp.float32)

    def value(layer):
        return jax.value_and_grad(lambda v, x: (layer.apply(v, x) * weights).sum(), (0, 1))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        value(layer)(variables, x),
        value(plain)(variables, x),
    )


@pytest.mark.parametrize(
    'platform, padding, products',
    [('cpu', 'VALID', 1), ('cpu', 'SAME', 0), ('cuda', 'VALID', 0), ('tpu', 'VALID', 0)],
)
def test_the_convolution_depends_on_the_platform_that_runs_it(platform, padding, products):
    """The machine that lowers has no influence, and the program omits the other variant."""
    layer, x = conv(4, 3, padding), jnp.zeros((2, 8, 8, 3))
    variables = layer.init(jax.random.key(0), x)
    text = jax.jit(layer.apply).trace(variables, x).lower(lowering_platforms=(platform,)).as_text()
    assert text.count('stablehlo.dot_general') == products
    assert text.count('stablehlo.convolution') == 1 - products


def test_large_patches_are_not_copied():
    layer, x = conv(1, 3, 'VALID'), jax.ShapeDtypeStruct((8, 600, 600, 1), jnp.float32)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert PATCHES_MIB * 2**20 < 8 * 600 * 600 * 9 * 4
    text = jax.jit(layer.apply).lower(variables, x).as_text()
    assert 'stablehlo.convolution' in text and 'dot_general' not in text
