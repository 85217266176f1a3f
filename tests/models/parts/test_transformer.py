"""Attention and stochastic depth."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.models.parts import transformer
from jaxtrain.models.parts.transformer import Attention, DropPath

LENGTH, WIDTH, HEADS = 5, 16, 2


def parameters(dtype='f8') -> dict:
    rng = np.random.default_rng(0)
    size = WIDTH // HEADS
    inside = {
        name: {
            'kernel': rng.normal(size=(WIDTH, HEADS, size)),
            'bias': rng.normal(size=(HEADS, size)),
        }
        for name in ('query', 'key', 'value')
    }
    out = {'kernel': rng.normal(size=(HEADS, size, WIDTH)), 'bias': rng.normal(size=WIDTH)}
    return jax.tree.map(lambda x: x.astype(dtype), {**inside, 'out': out})


def inputs() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, LENGTH, WIDTH))


MASK = np.random.default_rng(2).random((3, 1, LENGTH, LENGTH)) < 0.6
MASK |= np.eye(LENGTH, dtype=bool)
MASKS = {
    'all': ({}, None, np.ones((LENGTH, LENGTH), bool)),
    'causal': ({'causal': True}, None, np.tril(np.ones((LENGTH, LENGTH), bool))),
    'mask': ({}, MASK, MASK),
}


def by_hand(seen: np.ndarray) -> np.ndarray:
    """Attention in NumPy float64."""
    params = parameters()
    query, key, value = (
        np.einsum('blw,whs->bhls', inputs(), params[n]['kernel']) + params[n]['bias'][:, None]
        for n in ('query', 'key', 'value')
    )
    scores = np.einsum('bhqs,bhks->bhqk', query, key) / np.sqrt(WIDTH // HEADS)
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * seen
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum('bhqk,bhks->bqhs', weights, value)
    return np.einsum('bqhs,hsw->bqw', out, params['out']['kernel']) + params['out']['bias']


@pytest.mark.parametrize(('dtype', 'limit'), [('f8', 1e-13), ('f4', 1e-5)])
@pytest.mark.parametrize('name', MASKS)
def test_attention_against_its_formula(name, dtype, limit):
    options, mask, seen = MASKS[name]
    with jax.enable_x64(True):
        attention = Attention(HEADS, dropout=0.5)
        x = inputs().astype(dtype)
        out = attention.apply({'params': parameters(dtype)}, x, mask, train=False, **options)
        out = np.asarray(out)
    expected = by_hand(seen)
    assert out.dtype == dtype
    assert np.abs(out - expected).max() <= limit * np.abs(expected).max()


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('name', MASKS)
def test_softmax_of_half_precision_is_in_float32(name, dtype, train):
    """Also with dropout in training, which uses another implementation of attention."""
    options, mask, _ = MASKS[name]

    def out(x):
        rngs = {'dropout': jax.random.key(0)}
        return Attention(HEADS, dropout=0.5).apply(
            {'params': parameters(dtype)}, x, mask, train=train, rngs=rngs, **options
        )

    traced = jax.make_jaxpr(out)(jnp.asarray(inputs(), dtype))
    assert traced.out_avals[0].dtype == dtype
    exponentials = [eqn for eqn in _equations(traced.jaxpr) if eqn.primitive.name == 'exp']
    assert [eqn.outvars[0].aval.dtype for eqn in exponentials] == [jnp.float32]


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            if hasattr(value, 'jaxpr'):
                yield from _equations(value.jaxpr)


def test_dropped_weights_depend_on_the_key():
    def out(train, key):
        return Attention(HEADS, dropout=0.5).apply(
            {'params': parameters('f4')}, inputs().astype('f4'), None, train=train,
            rngs={'dropout': jax.random.key(key)},
        )  # fmt: skip

    assert np.abs(out(True, 0) - out(True, 1)).max() > 1e-2
    np.testing.assert_array_equal(out(False, 0), out(False, 1))


AMPERE = ('gpu', 'cuda 12090', '8.0')


@pytest.mark.parametrize(
    ('machine', 'dtype', 'size', 'masked', 'kernel'),
    [
        (AMPERE, 'bfloat16', 64, False, 'cudnn'),
        (AMPERE, 'float16', 128, False, 'cudnn'),
        (AMPERE, 'bfloat16', 64, True, None),
        (AMPERE, 'bfloat16', 60, False, None),
        (AMPERE, 'bfloat16', 136, False, None),
        (AMPERE, 'float32', 64, False, None),
        (('gpu', 'cuda 12090', '10.3'), 'bfloat16', 64, False, 'cudnn'),
        (('gpu', 'cuda 12090', '7.5'), 'bfloat16', 64, False, None),
        (('gpu', 'rocm 60000', 'gfx90a'), 'bfloat16', 64, False, None),
        (('tpu', 'libtpu', ''), 'bfloat16', 64, False, None),
        (('cpu', 'cpu', ''), 'bfloat16', 64, False, None),
    ],
)
def test_the_kernel_depends_on_the_device(monkeypatch, machine, dtype, size, masked, kernel):
    """The implementation passed to jax.nn.dot_product_attention; no such device is needed."""
    backend, version, capability = machine
    device = SimpleNamespace(
        client=SimpleNamespace(platform_version=version), compute_capability=capability
    )
    implementations = []

    def note(query, key, value, implementation, **options):
        implementations.append(implementation)
        return query

    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    monkeypatch.setattr(jax, 'devices', lambda: [device])
    monkeypatch.setattr(jax.nn, 'dot_product_attention', note)
    x = jax.ShapeDtypeStruct((2, 4, 1, size), dtype)
    mask = np.ones((1, 1, 4, 4), bool) if masked else None
    jax.eval_shape(lambda x: transformer._attend(x, x, x, mask, not masked, 0.5, None), x)
    assert implementations == [kernel]


# Stochastic depth.


def dropped(rate, train=True, rows=4000) -> np.ndarray:
    x = jnp.ones((rows, 2, 3))
    return DropPath().apply({}, x, rate, train=train, rngs={'dropout': jax.random.key(0)})


@pytest.mark.parametrize('rate', [0.0, 0.25, 0.75, jnp.float32(0.25)])
def test_whole_rows_are_dropped_and_the_others_scaled(rate):
    out = np.asarray(dropped(rate))
    rows = out[:, 0, 0]
    assert (out == rows[:, None, None]).all()
    np.testing.assert_allclose(np.unique(rows[rows > 0]), 1 / (1 - rate), rtol=1e-6)
    deviation = np.sqrt(rate * (1 - rate) / len(rows))
    assert abs((rows == 0).mean() - rate) <= 4 * deviation


def test_no_row_is_dropped_in_evaluation():
    np.testing.assert_array_equal(dropped(0.75, train=False), 1)
