"""ResNet, ViT, GPT and BERT: sizes, names, and properties that hold for any weights.

tests/weights/test_parity.py compares their results with other frameworks.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.models import make_model, resnet
from jaxtrain.params.partition import count, flatten
from jaxtrain.weights.origins import huggingface_text, timm
from tests.support.inputs import abstract_variables

IMAGE = (32, 48, 3)


@pytest.fixture(autouse=True, scope='module')
def quickly():
    """Skips optimisation, which would take longer than running these programs."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def model(name, outputs=5, **fields):
    return make_model(Config({'model': {'name': name, **fields}}).model, outputs)


def vit(**fields):
    return model('vit', **{'width': 12, 'depth': 2, 'heads': 3, 'mlp': 20, **fields})


def gpt(**fields):
    return model('gpt', 11, **{'width': 12, 'depth': 2, 'heads': 3, 'context': 8, **fields})


def bert(**fields):
    sizes = {'vocabulary': 11, 'width': 12, 'depth': 2, 'heads': 3, 'positions': 8}
    return model('bert', **{**sizes, **fields})


def shapes(made, inputs) -> dict[str, tuple]:
    params, _ = abstract_variables(made, inputs)
    return {path: leaf.shape for path, leaf in flatten(params).items()}


def filled(made, inputs, seed=0) -> dict:
    """Variables with normally distributed parameters."""
    rng = np.random.default_rng(seed)
    params, _ = abstract_variables(made, inputs)
    return {'params': jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype), params)}


@cache
def program(made, train: bool, method: str | None):
    return jax.jit(lambda v, x, more: made.apply(v, x, train=train, method=method, **more))


def out(made, variables, x, train=False, method=None, **more):
    return np.asarray(program(made, train, method)(variables, x, more))


def images(rows=2, size=IMAGE):
    return np.random.default_rng(1).normal(size=(rows, *size)).astype(np.float32)


def fault(made, inputs) -> str:
    with pytest.raises(UserError) as caught:
        abstract_variables(made, inputs)
    assert '\n' not in str(caught.value)
    return str(caught.value)


# Published counts: torchvision's table of models, timm's results, GPT-2 and BERT of transformers.
COUNTS = {
    'resnet18': 11_689_512,
    'resnet34': 21_797_672,
    'resnet50': 25_557_032,
    'resnet101': 44_549_160,
    'resnet152': 60_192_808,
    'vit_ti16': 5_717_416,
    'vit_s16': 22_050_664,
    'vit_b16': 86_567_656,
    'vit_l16': 304_326_632,
}


@pytest.mark.parametrize('name', COUNTS)
def test_image_models_have_the_published_number_of_parameters(name):
    params, _ = abstract_variables(model(outputs=1000, **timm.MODELS[name]), (224, 224, 3))
    assert count(params) == COUNTS[name]


@pytest.mark.parametrize(
    ('name', 'outputs', 'number'), [('gpt2', 50257, 124_439_808), ('bert_base', 2, 109_483_778)]
)
def test_text_models_have_the_published_number_of_parameters(name, outputs, number):
    params, _ = abstract_variables(model(outputs=outputs, **huggingface_text.MODELS[name]), (16,))
    assert count(params) == number


# ResNet.


@pytest.mark.parametrize(
    ('bottleneck', 'zero_init', 'zeros'),
    [(False, True, ['norm_2']), (True, True, ['norm_3']), (True, False, [])],
)
def test_resnet_blocks_start_as_the_identity(monkeypatch, bottleneck, zero_init, zeros):
    monkeypatch.setitem(resnet.STAGES, 18, ((1, 0, 0, 0), bottleneck))  # one block is enough
    made = model('resnet', depth=18, zero_init=zero_init)
    init = jax.jit(lambda: made.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))
    block = init()['params']['backbone']['stage1_block0']
    scales = {name: leaf['scale'] for name, leaf in block.items() if 'scale' in leaf}
    assert len(scales) == (4 if bottleneck else 2)
    assert [name for name, scale in scales.items() if not scale.any()] == zeros
    assert all((scale == 1).all() for name, scale in scales.items() if name not in zeros)


def test_resnet_statistics_have_the_paths_of_its_norms():
    params, state = abstract_variables(model('resnet', depth=18), IMAGE)
    norms = {p.removesuffix('/scale') for p in flatten(params) if p.endswith('/scale')}
    assert {p.removesuffix('/mean').removesuffix('/var') for p in flatten(state)} == {
        f'batch_stats/{path}' for path in norms
    }


def test_conv_bias_adds_a_bias_to_every_convolution():
    plain, keras = (shapes(model('resnet', conv_bias=b), IMAGE) for b in (False, True))
    added = set(keras) - set(plain)
    assert len(added) == 53 and all('/conv_' in p and p.endswith('/bias') for p in added)
    assert shapes(model('resnet', stride='1x1'), IMAGE) == plain


@pytest.mark.parametrize(
    ('field', 'choices'),
    [('stride', '3x3, 1x1'), ('padding', 'explicit, SAME'), ('depth', '18, 34, 50, 101, 152')],
)
def test_unknown_choices_of_a_resnet_are_refused(field, choices):
    wrong = 77 if field == 'depth' else 'wrong'
    message = fault(model('resnet', **{field: wrong}), IMAGE)
    assert message.startswith(f'config.model.{field}={wrong!r} ') and choices in message


# The Vision Transformer.


def test_vit_parameter_shapes():
    sizes = shapes(vit(), IMAGE)
    assert {p: s for p, s in sizes.items() if 'block' not in p} == {
        'backbone/patch/kernel': (16, 16, 3, 12),
        'backbone/patch/bias': (12,),
        'backbone/position': (2, 3, 12),
        'backbone/class_token': (1, 12),
        'backbone/class_position': (1, 12),
        'backbone/norm/scale': (12,),
        'backbone/norm/bias': (12,),
        'head/logits/kernel': (12, 5),
        'head/logits/bias': (5,),
    }
    start = 'backbone/block_1/'
    assert {p.removeprefix(start): s for p, s in sizes.items() if p.startswith(start)} == {
        **{f'norm_{n}/{part}': (12,) for n in (1, 2) for part in ('scale', 'bias')},
        **{f'attention/{n}/kernel': (12, 3, 4) for n in ('query', 'key', 'value')},
        **{f'attention/{n}/bias': (3, 4) for n in ('query', 'key', 'value')},
        'attention/out/kernel': (3, 4, 12),
        'attention/out/bias': (12,),
        'mlp/up/kernel': (12, 20),
        'mlp/up/bias': (20,),
        'mlp/down/kernel': (20, 12),
        'mlp/down/bias': (12,),
    }


# Fields -> (parameters that are added, parameters that are removed).
VARIANTS = {
    'registers': (
        {'registers': 4}, {'backbone/registers': (4, 12)}, (),
    ),
    'class token without a position': (
        {'class_position': False}, {}, ('backbone/class_position',),
    ),
    'no class token': (
        {'class_token': False, 'class_position': False, 'pool': 'mean'}, {},
        ('backbone/class_token', 'backbone/class_position'),
    ),
    'token and mean': ({'pool': 'both'}, {'head/logits/kernel': (24, 5)}, ()),
    'norm after the mean': ({'pool': 'mean', 'norm_after_pool': True}, {}, ()),
    'representation': (
        {'representation': 7},
        {
            'head/representation/kernel': (12, 7), 'head/representation/bias': (7,),
            'head/logits/kernel': (7, 5),
        },
        (),
    ),
    'LayerScale': (
        {'layer_scale': 0.1},
        {f'backbone/block_{i}/scale_{n}': (12,) for i in (0, 1) for n in (1, 2)},
        (),
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', VARIANTS)
def test_vit_variants(name):
    fields, added, removed = VARIANTS[name]
    made = vit(**fields)
    plain = shapes(vit(), IMAGE)
    assert set(removed) <= set(plain)
    expected = {p: s for p, s in {**plain, **added}.items() if p not in removed}
    assert shapes(made, IMAGE) == expected
    assert out(made, filled(made, IMAGE), images()).shape == (2, 5)


@pytest.mark.parametrize('name', ['registers', 'class_token', 'class_position', 'position'])
def test_every_token_of_a_vit_affects_the_output(name):
    made = vit(registers=2)
    variables = filled(made, IMAGE)
    backbone = variables['params']['backbone']
    one = out(made, variables, images())
    backbone[name] = backbone[name] + np.arange(12, dtype='f4')
    assert np.abs(one - out(made, variables, images())).max() > 1e-3


def test_the_mean_excludes_registers_and_the_class_token():
    """With blocks that do nothing, the output depends on the patches alone."""
    made = vit(registers=2, pool='mean', layer_scale=1.0)
    variables = filled(made, IMAGE)
    backbone = variables['params']['backbone']
    for i in (0, 1):
        for n in (1, 2):
            backbone[f'block_{i}'][f'scale_{n}'] = np.zeros(12, 'f4')
    one = out(made, variables, images())
    ramp = np.arange(12, dtype='f4')
    for name in ('registers', 'class_token'):
        backbone[name] = backbone[name] + ramp
    np.testing.assert_array_equal(out(made, variables, images()), one)
    backbone['position'] = backbone['position'] + ramp
    assert np.abs(out(made, variables, images()) - one).max() > 1e-3


def test_layer_scale_has_the_given_initial_value():
    made = vit(layer_scale=0.125, depth=1)
    init = jax.jit(lambda: made.init(jax.random.key(0), images(1), train=False))
    block = init()['params']['backbone']['block_0']
    np.testing.assert_array_equal(block['scale_1'], np.full(12, 0.125))
    np.testing.assert_array_equal(block['scale_2'], np.full(12, 0.125))


def test_positions_have_the_order_of_the_patches():
    """A change of one position is cancelled by a change of the pixels of the same patch."""
    made = vit(pool='mean', class_token=False, class_position=False, depth=0)
    variables = filled(made, IMAGE)
    backbone = variables['params']['backbone']
    backbone['patch']['kernel'] = np.zeros_like(backbone['patch']['kernel'])
    backbone['patch']['kernel'][0, 0, 0, 0] = 1  # the first pixel of a patch
    backbone['position'] = grid = np.zeros((2, 3, 12), 'f4')
    x = np.zeros((1, *IMAGE), 'f4')
    plain = out(made, variables, x)
    grid[1, 0, 0] = 10.0
    assert np.abs(out(made, variables, x) - plain).max() > 1e-3
    x[0, 16, 0, 0] = -10.0
    np.testing.assert_allclose(out(made, variables, x), plain, atol=1e-5)


@pytest.mark.parametrize('size', [(32, 40, 3), (40, 32, 3), (8, 8, 3)])
def test_images_that_are_not_a_multiple_of_the_patch_are_refused(size):
    variables = filled(vit(), IMAGE)
    with pytest.raises(ValueError, match='cannot be cut into patches of 16x16 pixels'):
        vit().apply(variables, images(1, size), train=False)
    message = fault(vit(), size)
    assert message == (
        f'config.model: ViT cannot take images of size {"x".join(map(str, size))}: '
        'they cannot be cut into patches of 16x16 pixels'
    )


@pytest.mark.parametrize('pool', ['token', 'both'])
def test_pooling_a_missing_class_token_is_refused(pool):
    message = fault(vit(class_token=False, pool=pool), IMAGE)
    assert f"pool='{pool}' needs the class token" in message


@pytest.mark.parametrize('made', [vit(heads=5), gpt(heads=5), bert(heads=5)])
def test_heads_that_do_not_divide_the_width_are_refused(made):
    inputs = IMAGE if type(made).__name__ == 'ViT' else (4,)
    assert fault(made, inputs).endswith('a width of 12 cannot be shared by 5 heads')


# GPT.


def test_gpt_is_causal():
    made = gpt()
    variables = filled(made, (8,))
    tokens = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    first = out(made, variables, tokens)
    for place in range(8):
        changed = tokens.copy()
        changed[0, place] = 10
        other = out(made, variables, changed)
        np.testing.assert_array_equal(other[:, :place], first[:, :place])
        assert (np.abs(other - first)[0, place:].max(-1) > 1e-4).all()


def test_gpt_logits_depend_on_the_position():
    made = gpt(depth=1)
    variables = filled(made, (8,))
    logits = out(made, variables, np.full((1, 8), 3))[0]
    assert (np.abs(np.diff(logits, axis=0)).max(-1) > 1e-4).all()


def test_more_tokens_than_the_context_are_refused():
    made = gpt()
    variables = filled(made, (8,))
    assert out(made, variables, np.zeros((1, 8), int)).shape == (1, 8, 11)
    text = '9 tokens are more than the 8 of its context'
    with pytest.raises(ValueError, match=text):
        made.apply(variables, np.zeros((1, 9), int), train=False)
    with pytest.raises(ValueError, match=text):
        made.apply(variables, np.zeros((1, 2), int), train=False, cache=9, mutable=['cache'])
    assert fault(made, (9,)) == f'config.model: GPT cannot take tokens of size 9: {text}'


def test_a_tied_head_is_the_embedding():
    tied, untied = gpt(), gpt(tied=False)
    names = shapes(untied, (8,))
    assert names.pop('head/logits/kernel') == (12, 11)
    assert shapes(tied, (8,)) == names
    tokens = np.array([[3, 1, 4]])
    variables = filled(tied, (8,))
    features = out(tied, variables, tokens, method='features')
    embedding = variables['params']['backbone']['tokens']['embedding']
    logits = out(tied, variables, tokens)
    np.testing.assert_allclose(logits, features @ embedding.T, rtol=1e-4, atol=1e-5)
    params = {**variables['params'], 'head': {'logits': {'kernel': 2 * embedding.T}}}
    doubled = out(untied, {'params': params}, tokens)
    np.testing.assert_allclose(doubled, 2 * logits, rtol=1e-4, atol=1e-5)


# BERT.


@pytest.mark.parametrize('pool', ['token', 'first', 'mean'])
def test_padding_has_no_effect(pool):
    """The output for a row is the same with padding in a batch as alone without padding."""
    made = bert(pool=pool)
    variables = filled(made, (8,))
    alone = out(made, variables, np.array([[3, 1, 4]]))
    batch = np.array([[3, 1, 4, 0, 0, 0, 0], [2, 7, 1, 8, 2, 8, 1]])
    np.testing.assert_allclose(out(made, variables, batch)[:1], alone, atol=1e-5)
    batch[0, 3] = 5
    assert np.abs(out(made, variables, batch)[:1] - alone).max() > 1e-3


def test_the_padding_token_can_be_chosen():
    made = bert(pad=9, pool='mean')
    variables = filled(made, (8,))
    alone = out(made, variables, np.array([[3, 0, 4]]))
    padded = out(made, variables, np.array([[3, 0, 4, 9, 9]]))
    np.testing.assert_allclose(padded, alone, atol=1e-5)


@pytest.mark.parametrize('pool', ['token', 'first', 'mean'])
def test_embeddings_have_length_one(pool):
    made = bert(pool=pool)
    variables = filled(made, (8,))
    tokens = np.array([[3, 1, 4, 0], [2, 7, 1, 8]])
    vectors = out(made, variables, tokens, method='embed')
    assert vectors.shape == (2, 12)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_the_embedding_of_a_row_of_padding_is_zero():
    made = bert(pool='mean')
    vector = out(made, filled(made, (8,)), np.zeros((1, 4), int), method='embed')
    np.testing.assert_array_equal(vector, 0)


def test_bert_is_bidirectional_and_uses_token_types():
    made = bert(pool='first')
    variables = filled(made, (8,))
    tokens = np.array([[3, 1, 4, 1]])
    one = out(made, variables, tokens)
    last = out(made, variables, np.array([[3, 1, 4, 2]]))
    kinds = out(made, variables, tokens, types=np.array([[0, 0, 0, 1]]))
    assert np.abs(last - one).max() > 1e-4 and np.abs(kinds - one).max() > 1e-4
    same = out(made, variables, tokens, types=np.zeros((1, 4), int))
    np.testing.assert_array_equal(same, one)


def test_more_tokens_than_positions_are_refused():
    text = '9 tokens are more than its 8 positions'
    with pytest.raises(ValueError, match=text):
        bert().apply(filled(bert(), (8,)), np.ones((1, 9), int), train=False)
    assert fault(bert(), (9,)) == f'config.model: BERT cannot take tokens of size 9: {text}'


def test_only_pool_token_has_a_pooler():
    mean, token = shapes(bert(pool='mean'), (8,)), shapes(bert(), (8,))
    assert set(token) - set(mean) == {'backbone/pooler/kernel', 'backbone/pooler/bias'}
    assert shapes(bert(pool='first'), (8,)) == mean


# All families.


@pytest.mark.parametrize('made', [vit(dropout=0.5), gpt(dropout=0.5), bert(dropout=0.5)])
def test_dropout_is_active_only_in_training(made):
    inputs = IMAGE if type(made).__name__ == 'ViT' else (8,)
    x = images(1) if len(inputs) == 3 else np.arange(1, 9)[None]
    variables = filled(made, inputs)

    def dropped(train, key):
        return out(made, variables, x, train=train, rngs={'dropout': jax.random.key(key)})

    assert (dropped(True, 0) != dropped(True, 1)).any()
    np.testing.assert_array_equal(dropped(False, 0), dropped(False, 1))


@pytest.mark.parametrize('made', [vit(gelu='wrong'), gpt(gelu='wrong'), bert(gelu='wrong')])
def test_an_unknown_gelu_is_refused(made):
    inputs = IMAGE if type(made).__name__ == 'ViT' else (8,)
    message = fault(made, inputs)
    assert message.startswith("config.model.gelu='wrong' ") and 'erf, tanh' in message


def test_initial_kernels_of_gpt():
    """The std is 0.02, or 0.02 / sqrt(6) in the 6 layers that add to the residual stream."""
    inits = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense | nn.DenseGeneral):
            inits['/'.join(context.module.path)] = context.module.kernel_init
        return call(*args, **kwargs)

    with nn.intercept_methods(note):  # initialisers are recorded, not run
        abstract_variables(gpt(depth=3), (8,))
    block = {path.split('block_1/')[1]: init for path, init in inits.items() if 'block_1/' in path}
    stds = {layer: float(init(jax.random.key(0), (99, 99)).std()) for layer, init in block.items()}
    residual = dict.fromkeys(('attention/out', 'mlp/down'), 0.02 / 6**0.5)
    others = ('attention/query', 'attention/key', 'attention/value', 'mlp/up')
    assert stds == pytest.approx(dict.fromkeys(others, 0.02) | residual, rel=0.05)
