"""The Vision Transformer: fixed positions and stochastic depth."""

import math

import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxtrain.errors import UserError
from jaxtrain.models.parts.transformer import DropPath
from jaxtrain.models.vit import ViT, sincos2d
from jaxtrain.params.partition import flatten, unflatten
from tests.support.inputs import abstract_variables

IMAGE = (8, 12, 1)  # 2 x 3 patches


def vit(**fields) -> ViT:
    return ViT(5, (4, 4), **{'width': 8, 'depth': 3, 'heads': 2, 'mlp': 12, **fields})


def filled(made: ViT) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    params, _ = abstract_variables(made, IMAGE)
    return {p: rng.normal(0, 0.5, x.shape).astype('f4') for p, x in flatten(params).items()}


def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, *IMAGE)).astype('f4')


@pytest.mark.parametrize(('rows', 'columns', 'width'), [(2, 3, 8), (14, 14, 64), (5, 1, 4)])
def test_sincos2d_against_its_formula(rows, columns, width):
    positions = sincos2d(rows, columns, width)
    count = width // 4
    for row in range(rows):
        for column in range(columns):
            for k in range(count):
                period = 10_000 ** (k / (count - 1)) if count > 1 else 1.0
                expected = [
                    wave(index / period) for index in (column, row) for wave in (math.sin, math.cos)
                ]
                np.testing.assert_allclose(positions[row, column, k::count], expected, atol=1e-6)


def test_fixed_positions_are_added_but_are_not_parameters():
    learned, fixed = vit(), vit(position='sincos2d')
    params = filled(learned)
    params['backbone/position'] = sincos2d(2, 3, 8)
    without = {path: x for path, x in params.items() if path != 'backbone/position'}
    assert set(filled(fixed)) == set(without)
    np.testing.assert_array_equal(
        learned.apply({'params': unflatten(params)}, images(), train=False),
        fixed.apply({'params': unflatten(without)}, images(), train=False),
    )


def test_drop_path_grows_linearly_with_depth():
    """Attention and MLP of a block are dropped independently, at the same rate."""
    made, rates = vit(drop_path=0.5), []
    params = unflatten(filled(made))

    def note(call, args, kwargs, context):
        if isinstance(context.module, DropPath):
            rates.append(float(args[1]))
        return call(*args, **kwargs)

    rngs = {'dropout': jax.random.key(0)}
    with nn.intercept_methods(note):
        made.apply({'params': params}, images(), train=True, rngs=rngs)
    assert rates == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5]


@pytest.mark.parametrize('scan', [False, True])
def test_a_skipped_block_has_no_effect(scan):
    """At a rate near 1, all rows skip the second block; the first block is never skipped."""
    made = vit(drop_path=0.9999999, depth=2, scan=scan)
    params = filled(made)
    alone = {path: x for path, x in params.items() if 'block_1' not in path}
    rngs = {'dropout': jax.random.key(0)}
    outputs = made.apply({'params': unflatten(params)}, images(), train=True, rngs=rngs)
    expected = vit(depth=1).apply({'params': unflatten(alone)}, images(), train=False)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'drop_path': 1.0}, ['config.model.drop_path=1.0', 'less than 1']),
        ({'drop_path': -0.1}, ['config.model.drop_path=-0.1', 'at least 0']),
        ({'remat': 'all'}, ["config.model.remat='all'", 'none, dots, full']),
        ({'position': 'x'}, ["config.model.position='x'", 'learned, sincos2d']),
        ({'position': 'sincos2d', 'width': 6}, ["position='sincos2d'", 'width', '4', '6']),
    ],
)
def test_wrong_fields(fields, words):
    with pytest.raises(UserError) as caught:
        abstract_variables(vit(**fields), IMAGE)
    assert all(word in str(caught.value) for word in words), caught.value
