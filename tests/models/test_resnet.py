"""ResNet: variants for small images, rematerialisation, and statistics over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxtrain.errors import UserError
from jaxtrain.models import resnet
from jaxtrain.models.cnn import CNN
from jaxtrain.models.resnet import ResNet
from jaxtrain.params.partition import Partition, flatten
from tests.support.inputs import abstract_variables

SIZES = {'depth': 18, 'widths': (2, 3, 4, 5), 'stem': 'conv3', 'zero_init': False}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Uses few layers, and skips optimisation, which would take longer than running."""
    monkeypatch.setitem(resnet.STAGES, 18, ((1, 1, 1, 1), False))
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def filled(made, size=(8, 8, 2)) -> dict:
    rng = np.random.default_rng(0)
    params, stats = abstract_variables(made, size)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype('f4'), params)
    stats = jax.tree.map(lambda x: rng.uniform(0.5, 2, x.shape).astype('f4'), stats)
    return {'params': params, **stats}


def images(rows=4) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, 8, 8, 2)).astype('f4')


@pytest.mark.parametrize(
    ('stem', 'kernel', 'sides'),
    [('conv7', (7, 7, 2, 2), (8, 4, 2, 1)), ('conv3', (3, 3, 2, 2), (32, 16, 8, 4))],
)
def test_stem_and_widths(stem, kernel, sides):
    made = ResNet(5, **{**SIZES, 'stem': stem})
    params, _ = abstract_variables(made, (32, 32, 2))
    assert params['backbone']['conv_0']['kernel'].shape == kernel
    assert params['head']['logits']['kernel'].shape == (5, 5)

    def blocks():
        variables = made.init(jax.random.key(0), jnp.zeros((1, 32, 32, 2)), train=False)
        return made.apply(variables, jnp.zeros((1, 32, 32, 2)), train=False,
                          capture_intermediates=True)[1]['intermediates']['backbone']  # fmt: skip

    results = jax.eval_shape(blocks)
    assert [results[f'stage{i}_block0']['__call__'][0].shape for i in (1, 2, 3, 4)] == [
        (1, side, side, width) for side, width in zip(sides, SIZES['widths'], strict=True)
    ]


def test_a_block_starts_as_the_identity(monkeypatch):
    """The scale of a block's last norm starts at 0; all others start at 1."""
    monkeypatch.setitem(resnet.STAGES, 50, ((1, 1), True))
    inits = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm):
            inits['/'.join(context.module.path)] = context.module.scale_init
        return call(*args, **kwargs)

    with nn.intercept_methods(note):  # initialisers are recorded, not run
        abstract_variables(ResNet(5, 50, widths=(2, 3), stem='conv3'), (8, 8, 2))
    starts = {path: float(init(jax.random.key(0), (1,))[0]) for path, init in inits.items()}
    last = {f'backbone/stage{number}_block0/norm_3' for number in (1, 2)}
    assert len(starts) == 9 and starts == {path: 0.0 if path in last else 1.0 for path in starts}


def test_running_statistics_follow_the_momentum(monkeypatch):
    """new = momentum * old + (1 - momentum) * batch; two momenta imply the same batch values."""
    monkeypatch.setitem(resnet.STAGES, 18, ((1,), False))
    x, batches = images(), []
    for momentum, fields in ((0.9, {}), (0.7, {'norm_momentum': 0.7})):
        made = ResNet(5, **{**SIZES, 'widths': (2,)}, **fields)
        variables = filled(made)
        apply = jax.jit(lambda v, made=made: made.apply(v, x, train=True, mutable=['batch_stats']))
        old, new = flatten(variables['batch_stats']), flatten(apply(variables)[1]['batch_stats'])
        batches.append({p: (new[p] - momentum * old[p]) / (1 - momentum) for p in old})
    for path in batches[0]:
        np.testing.assert_allclose(*(batch[path] for batch in batches), rtol=1e-3, atol=1e-3)


def test_bottlenecks_return_four_times_their_width():
    params, _ = abstract_variables(ResNet(5, 50, widths=(2, 3, 4, 6)), (32, 32, 2))
    assert params['head']['logits']['kernel'].shape == (24, 5)


def test_remat_does_not_change_results():
    """A norm that is frozen by its path also stays frozen."""
    plain, frozen = ResNet(5, **SIZES), 'backbone/stage2_block0/norm_1'
    part = Partition({}, frozenset([frozen]))
    variables = filled(plain)

    def evaluate(made):
        @jax.jit
        def run(params):
            def loss(params):
                with part.freeze_norms():
                    out, state = made.apply(
                        {**variables, 'params': params}, images(), train=True,
                        mutable=['batch_stats'],
                    )  # fmt: skip
                return (jnp.sin(out) ** 2).sum(), state

            return jax.value_and_grad(loss, has_aux=True)(params)

        return run(variables['params'])

    (loss, state), grads = evaluate(plain)
    (again, state_again), grads_again = evaluate(plain.clone(remat='full'))
    assert list(flatten(abstract_variables(plain.clone(remat='full'), (8, 8, 2))[0])) == list(
        flatten(variables['params'])
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        (again, state_again, grads_again),
        (loss, state, grads),
    )
    kept = flatten(variables['batch_stats'])
    same = {p for p, x in flatten(state['batch_stats']).items() if np.array_equal(x, kept[p])}
    assert same == {f'{frozen}/mean', f'{frozen}/var'}


@pytest.mark.parametrize('made', [ResNet(5, **SIZES), CNN(5, (3, 4))], ids=['resnet', 'cnn'])
def test_batch_statistics_are_computed_over_all_devices(made):
    variables = filled(made)

    def run(made):
        return lambda x: made.apply(variables, x, train=True, mutable=['batch_stats'])

    out, state = jax.jit(run(made))(images())
    halves = images().reshape(2, 2, 8, 8, 2)
    over_axis = jax.vmap(run(made.clone(axis='devices')), axis_name='devices')
    sharded, states = jax.jit(over_axis)(halves)
    np.testing.assert_allclose(sharded.reshape(4, 5), out, rtol=1e-3, atol=1e-3)
    jax.tree.map(
        lambda each, whole: np.testing.assert_allclose(
            each, np.stack([whole, whole]), rtol=1e-4, atol=1e-4
        ),
        states,
        state,
    )
    alone, _ = jax.jit(jax.vmap(run(made)))(halves)
    assert np.abs(alone.reshape(4, 5) - out).max() > 0.05


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'stem': '7x7'}, ["config.model.stem='7x7'", 'conv7, conv3']),
        ({'remat': 'dots'}, ["config.model.remat='dots'", 'none, full']),
        (
            {'widths': (2, 3)},
            ['config.model.widths=(2, 3)', '2 numbers', 'give 4'],
        ),
    ],
)
def test_wrong_fields(fields, words):
    with pytest.raises(UserError) as caught:
        abstract_variables(ResNet(5, **{**SIZES, **fields}), (32, 32, 3))
    assert all(word in str(caught.value) for word in words), caught.value
