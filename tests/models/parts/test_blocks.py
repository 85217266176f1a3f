"""Loops over blocks and rematerialisation do not change results, names or random numbers."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxtrain.costs import flops
from jaxtrain.models import split_scan
from jaxtrain.models.bert import BERT
from jaxtrain.models.cnn import CNN
from jaxtrain.models.gpt import GPT
from jaxtrain.models.parts.blocks import Chain, Stack
from jaxtrain.models.parts.transformer import DropPath
from jaxtrain.models.vit import ViT
from jaxtrain.parallel.replicas import Replicas
from jaxtrain.params.partition import flatten, unflatten
from tests.support.inputs import abstract_variables

DEPTH = 4
SIZES = {'width': 12, 'depth': DEPTH, 'heads': 3, 'mlp': 20}
MODELS = {
    'vit': (ViT(5, (4, 4), layer_scale=0.5, drop_path=0.6, **SIZES), (8, 8, 1)),
    'gpt': (GPT(11, context=6, **SIZES), (6,)),
    'bert': (BERT(5, 11, positions=6, **SIZES), (6,)),
}


@pytest.fixture(autouse=True, scope='module')
def quickly():
    """Skips optimisation, which would take longer than running these programs."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def variables(name: str) -> dict[str, np.ndarray]:
    """float64 parameters of a model by path."""
    rng = np.random.default_rng(0)
    params, _ = abstract_variables(*MODELS[name])
    return {path: rng.normal(0, 0.5, leaf.shape) for path, leaf in flatten(params).items()}


def batch(name: str) -> np.ndarray:
    rng, shape = np.random.default_rng(1), (3, *MODELS[name][1])
    return rng.normal(size=shape) if name == 'vit' else rng.integers(0, 11, shape)


def expectation(call, args, kwargs, context):
    """Replaces stochastic depth by its expectation without scaling, so that nothing is random."""
    if isinstance(context.module, DropPath) and context.method_name == '__call__':
        x, rate = args
        return x * (1 - rate)
    return call(*args, **kwargs)


def loss_of(model, params: dict, x) -> jax.Array:
    rngs = {'dropout': jax.random.key(0)}
    with nn.intercept_methods(expectation):
        out = model.apply({'params': unflatten(params)}, x, train=True, rngs=rngs)
    return jnp.sum(jnp.sin(out) ** 2)


def agree(result: tuple, expected: tuple) -> None:
    """Asserts that losses and gradients are equal up to float64 rounding."""
    (loss, grads), (again, grads_again) = expected, result
    assert loss.dtype == again.dtype == np.float64
    np.testing.assert_allclose(again, loss, rtol=1e-12)
    # Some gradients are zero in exact arithmetic, so the tolerance is relative to the largest one.
    limit = 1e-12 * max(np.abs(grad).max() for grad in grads.values())
    for path, grad in grads.items():
        np.testing.assert_allclose(grads_again[path], grad, rtol=0, atol=limit, err_msg=path)


def test_a_vit_has_the_same_loss_and_gradients():
    """Two rematerialised blocks in a loop and one after it, against three plain blocks, each with a
    different rate of stochastic depth and with intercepted methods.
    """
    plain = MODELS['vit'][0].clone(depth=3)
    params = {path: x for path, x in variables('vit').items() if 'block_3' not in path}

    def gradients(model) -> tuple:
        return jax.jit(jax.value_and_grad(lambda p: loss_of(model, p, batch('vit'))))(params)

    with jax.enable_x64(True):
        looped = plain.clone(scan=True, scan_ends=(2,), remat='full')
        agree(gradients(looped), gradients(plain))


@pytest.mark.parametrize('name', ['gpt', 'bert'])
def test_text_models_have_the_same_loss(name):
    with jax.enable_x64(True):
        plain, other = (
            jax.jit(lambda p, f=fields: loss_of(MODELS[name][0].clone(**f), p, batch(name)))(
                variables(name)
            )
            for fields in ({}, {'scan': True, 'scan_ends': (2, 3), 'remat': 'full'})
        )
        np.testing.assert_allclose(other, plain, rtol=1e-12)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, rate):
        return x + nn.tanh(nn.Dense(3, name='dense')(x)) * rate


class Layers(nn.Module):
    stack: Stack

    @nn.compact
    def __call__(self, x):
        layers = [Layer(name=f'block_{i}') for i in range(DEPTH)]
        rates = jnp.linspace(0.5, 1, DEPTH)
        return Chain(self, layers, lambda layer, x, rate: layer(x, rate), self.stack)(x, rates)


PLAIN = Stack()
STACKS = [
    Stack('dots'), Stack('full'), Stack('none', True), Stack('none', True, (1,)),
    Stack('dots', True, (2,)), Stack('full', True),
]  # fmt: skip


@pytest.mark.parametrize('stack', STACKS, ids=str)
def test_every_stack_has_the_same_loss_and_gradients(stack):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3))
    params = {}
    for i in range(DEPTH):
        params[f'block_{i}/dense/kernel'] = rng.normal(size=(3, 3))
        params[f'block_{i}/dense/bias'] = rng.normal(size=3)

    def gradients(stack: Stack) -> tuple:
        def loss(params: dict) -> jax.Array:
            return (Layers(stack).apply({'params': unflatten(params)}, x) ** 2).sum()

        return jax.value_and_grad(loss)(params)

    with jax.enable_x64(True):
        agree(gradients(stack), gradients(PLAIN))


@pytest.mark.slow
def test_a_looped_model_with_a_cache():
    """The cache has the names of a model without a loop, and later calls continue from it."""
    params = unflatten({path: x.astype('f4') for path, x in variables('gpt').items()})
    tokens = batch('gpt')
    whole = MODELS['gpt'][0].apply({'params': params}, tokens, train=False)
    model, cache = MODELS['gpt'][0].clone(**LOOPED), {}
    for start, part in ((0, tokens[:, :4]), (4, tokens[:, 4:])):
        logits, cache = model.apply(
            {'params': params, **cache}, part, train=False, cache=6, mutable=['cache'],
            start=jnp.full(len(part), start),
        )  # fmt: skip
        np.testing.assert_allclose(logits, whole[:, start:][:, : part.shape[1]], atol=1e-4)
    assert set(cache['cache']['backbone']) == {f'block_{i}' for i in range(DEPTH)}


LOOPED = {'scan': True, 'remat': 'full'}


@pytest.mark.parametrize('name', MODELS)
def test_parameters_have_the_same_names(name):
    model, shape = MODELS[name]
    assert abstract_variables(model.clone(**LOOPED), shape) == abstract_variables(model, shape)


def test_parameters_have_the_same_initial_values():
    model, x = MODELS['gpt'][0].clone(depth=2), jnp.ones((1, 6), jnp.int32)
    init = jax.jit(lambda made: made.init(jax.random.key(0), x, train=False), static_argnums=0)
    jax.tree.map(np.testing.assert_array_equal, init(model), init(model.clone(**LOOPED)))


@pytest.mark.parametrize('name', MODELS)
def test_the_program_of_a_loop_contains_one_block(name):
    def products(fields: dict) -> int:
        model = MODELS[name][0].clone(**fields)
        text = jax.jit(lambda p: loss_of(model, p, batch(name))).lower(variables(name)).as_text()
        return text.count('dot_general')

    plain, deeper, looped = products({'depth': 3}), products({}), products({'scan': True})
    assert plain - looped == 2 * (deeper - plain) > 0


@pytest.mark.parametrize(('kind', 'recomputed'), [('dots', 2), ('full', 7)])
@pytest.mark.parametrize('scan', [False, True])
def test_number_of_recomputed_matrix_products(kind, recomputed, scan):
    """A block has 8 products. 'dots' recomputes the two of attention, which have batch dimensions;
    'full' recomputes all except the last, whose result the backward pass does not need.
    """

    assert products(kind, scan) - products('none', scan) == recomputed * DEPTH


@cache
def products(kind: str, scan: bool) -> int:
    """The number of matrix products in the gradient of a GPT."""
    model = MODELS['gpt'][0].clone(remat=kind, scan=scan)
    grad = jax.grad(lambda p: loss_of(model, p, batch('gpt')))
    return _count(jax.make_jaxpr(grad)(variables('gpt')).jaxpr)


def _count(jaxpr) -> int:
    """The number of matrix products; those in a loop count once per iteration."""
    total = 0
    for eqn in jaxpr.eqns:
        times = eqn.params.get('length', 1) if eqn.primitive.name == 'scan' else 1
        inner = [getattr(v, 'jaxpr', v) for v in eqn.params.values() if hasattr(v, 'eqns')]
        inner += [v.jaxpr for v in eqn.params.values() if hasattr(v, 'jaxpr')]
        total += eqn.primitive.name == 'dot_general'
        total += times * sum(map(_count, {id(v): v for v in inner}.values()))
    return total


# Random numbers.


class Digits(nn.Module):
    """Appends a digit to those of earlier blocks: its argument, or its dropout mask."""

    dropped: bool

    @nn.compact
    def __call__(self, x, digit):
        one = self.param('one', nn.initializers.ones, ())
        if self.dropped:
            digit = nn.Dropout(0.5, deterministic=False)(jnp.ones_like(x)) > 0
        return 10 * x + one * digit


class Number(nn.Module):
    stack: Stack
    dropped: bool = False

    @nn.compact
    def __call__(self, x):
        blocks = [Digits(self.dropped, name=f'block_{i}') for i in range(DEPTH)]
        each = jnp.arange(1.0, 1 + DEPTH)
        return Chain(self, blocks, lambda block, x, digit: block(x, digit), self.stack)(x, each)


def number(stack: Stack, dropped: bool = False, ones=(1, 1, 1, 1)) -> jax.Array:
    params = {f'block_{i}': {'one': one} for i, one in enumerate(ones)}
    rngs = {'dropout': jax.random.key(0)}
    return Number(stack, dropped).apply({'params': params}, jnp.zeros(64), rngs=rngs)


@pytest.mark.parametrize('stack', [PLAIN, *STACKS], ids=str)
def test_blocks_receive_their_slices_in_order(stack):
    np.testing.assert_array_equal(number(stack), 1234)


@pytest.mark.parametrize('stack', [PLAIN, *STACKS], ids=str)
def test_dropout_masks_differ_between_blocks(stack):
    masks = np.array([list(f'{int(n):04}') for n in number(stack, dropped=True)]).T == '1'
    assert (masks.mean(1) > 0.2).all() and (masks.mean(1) < 0.8).all()
    assert all((masks[i] != masks[j]).any() for i in range(DEPTH) for j in range(i))


@pytest.mark.parametrize('stack', STACKS, ids=str)
def test_recomputation_uses_the_same_dropout_masks(stack):
    """The sum is linear in the ones, so it equals the sum of their gradients."""
    total, grads = jax.value_and_grad(
        lambda ones: number(stack, dropped=True, ones=ones).sum()
    )((1.0, 1.0, 1.0, 1.0))  # fmt: skip
    assert float(total) == pytest.approx(float(sum(grads)))


def test_dropout_masks_on_two_devices_are_those_on_one():
    """Each device uses the masks of its rows, for stochastic depth and for dropout in a loop."""
    model = MODELS['vit'][0].clone(dropout=0.3, scan=True)
    params = {k: v.astype('f4') for k, v in variables('vit').items()}
    x = np.random.default_rng(1).normal(size=(6, 8, 8, 1)).astype('f4')
    replicas = Replicas(axis='devices')

    def out(x):
        rngs = {'dropout': jax.random.key(3)}
        return model.apply({'params': unflatten(params)}, x, train=True, rngs=rngs)

    def on_device(x):
        with replicas.layers(len(x)):
            return out(x)

    halves = jax.jit(jax.vmap(on_device, axis_name='devices'))(x.reshape(2, 3, 8, 8, 1))
    np.testing.assert_allclose(halves.reshape(6, 5), jax.jit(out)(x), rtol=1e-4, atol=1e-4)


# Freezing.


def trained_blocks(blocks, name='vit') -> dict[str, bool]:
    """Whether each parameter is trained if only these blocks, the last norm and the head are."""
    starts = ('head/', 'backbone/norm/', *(f'backbone/block_{i}/' for i in blocks))
    return {path: path.startswith(starts) for path in variables(name)}


@pytest.mark.parametrize(
    ('blocks', 'ends'),
    [((), ()), ((0, 1, 2, 3), ()), ((3,), (3,)), ((2, 3), (2,)), ((1,), (1, 2)),
     ((0, 2), (1, 2, 3))],
)  # fmt: skip
def test_loops_are_split_between_frozen_and_trained_blocks(blocks, ends):
    model = MODELS['vit'][0].clone(scan=True)
    assert split_scan(model, trained_blocks(blocks)) == model.clone(scan_ends=ends)


def test_loops_are_split_where_the_trained_parts_of_blocks_differ():
    trained = {path: path.endswith('bias') for path in variables('vit')}
    model = MODELS['vit'][0].clone(scan=True)
    assert split_scan(model, trained).scan_ends == ()
    trained['backbone/block_1/mlp/up/kernel'] = True
    assert split_scan(model, trained).scan_ends == (1, 2)


@pytest.mark.parametrize('model', [MODELS['vit'][0], CNN(5)])
def test_a_model_without_a_loop_is_not_changed(model):
    assert split_scan(model, trained_blocks((3,))) is model


@pytest.mark.parametrize('kind', ['none', 'full'])
def test_frozen_blocks_need_no_backward_pass(kind):
    """The number of operations is that without loops; a single loop needs more."""
    trained = trained_blocks((2, 3))
    params = variables('vit')

    def work(model) -> float:
        def loss(some: dict) -> jax.Array:
            return loss_of(model, {**params, **some}, batch('vit'))

        return flops.count(jax.grad(loss), {p: params[p] for p in params if trained[p]}).matmul

    plain = MODELS['vit'][0].clone(remat=kind)
    scan = plain.clone(scan=True)
    assert work(split_scan(scan, trained)) == work(plain) < work(scan)
