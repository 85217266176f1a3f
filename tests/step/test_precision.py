"""What the bfloat16 policy computes in bfloat16, and what stays in float32."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxtrain.config import Config, base
from jaxtrain.data.features import IMAGE, feature
from jaxtrain.errors import UserError
from jaxtrain.params.partition import flatten
from jaxtrain.step.learner import make_learner
from jaxtrain.step.precision import FLOAT32
from jaxtrain.step.state import Update, abstract_inputs, init_state, init_variables
from jaxtrain.weights.bundle import resolve
from tests.support.inputs import image_source

SHAPE, CLASSES = (8, 8, 3), ('a', 'b', 'c')
MODELS = {
    'cnn': {'name': 'cnn', 'widths': (8, 8)},
    'vit': {'name': 'vit', 'patch': (4, 4), 'width': 16, 'depth': 1, 'heads': 2, 'mlp': 32},
}
UPDATE = Update(optax.adam(1e-3), ema=0.9)


def parts(model: str, precision: str):
    cfg = Config(base().to_dict() | {'model': MODELS[model]}).replace(precision=precision)
    cfg = resolve(cfg, None)
    learner = make_learner(cfg, image_source(99, SHAPE, CLASSES))
    params, stats = init_variables(
        learner.model, np.uint32(0), abstract_inputs(feature(IMAGE, *SHAPE))
    )
    if model == 'vit':  # its head is initialised with zeros
        params['head']['logits']['kernel'] = jnp.sin(jnp.arange(16.0 * 3)).reshape(16, 3)
    return learner, init_state((params, stats), 0, UPDATE, learner.part)


def batch() -> dict:
    rng = np.random.default_rng(0)
    return {
        'image': rng.integers(0, 256, (64, *SHAPE)).astype(np.uint8),
        'label': rng.integers(0, 3, 64).astype(np.int32),
    }


def step(model: str, precision: str):
    learner, state = parts(model, precision)
    return jax.jit(learner.train_step(UPDATE))(state, batch())


@pytest.mark.parametrize('model', MODELS)
def test_state_and_gradients_stay_float32(model):
    state, metrics = step(model, 'bfloat16')
    kept = jax.tree.leaves((state.params, state.model_state, state.ema, metrics))
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert {x.dtype.name for x in (*kept, *moments)} == {'float32'}


@pytest.mark.parametrize('model', MODELS)
def test_layers_compute_in_bfloat16_and_norms_in_float32(model):
    learner, state = parts(model, 'bfloat16')
    policy = learner.precision
    seen = {}

    def note(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == '__call__' and isinstance(out, jax.Array):
            leaves = jax.tree.leaves(context.module.variables.get('params', {}))
            dtypes = {x.dtype.name for x in leaves}
            seen['/'.join(context.module.path)] = (type(context.module), dtypes, out.dtype.name)
        return out

    def forward(params):
        variables = {'params': policy.params(params), **state.model_state}
        with policy.norms_in_float32(), nn.intercept_methods(note):
            return learner.model.apply(
                variables, policy.inputs(jnp.zeros((2, *SHAPE))), train=False
            )

    assert jax.eval_shape(forward, state.params).dtype == jnp.bfloat16
    norms = {path: record for path, record in seen.items() if 'norm' in path}
    assert norms and policy.norms == set(norms)
    # `note` sees the result of a norm before it is cast.
    assert all(record[1:] == ({'float32'}, 'float32') for record in norms.values())
    layers = [f for f in seen.values() if f[0] in (nn.Dense, nn.Conv, nn.DenseGeneral)]
    assert len(layers) > 2 and all(f[1:] == ({'bfloat16'}, 'bfloat16') for f in layers)


@pytest.mark.parametrize('model', MODELS)
def test_a_step_is_close_to_that_in_float32(model):
    """Equal within the precision of bfloat16, but not identical, since the policy applies."""
    (half, metrics), (single, reference) = step(model, 'bfloat16'), step(model, 'float32')
    assert metrics['loss'] == pytest.approx(float(reference['loss']), rel=0.02)
    assert metrics['loss'] != reference['loss']
    one, other = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(s.opt_state[0].mu)])
        for s in (half, single)
    )
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.99


def test_batch_statistics_are_summed_in_float32():
    """In bfloat16 a sum of 16,384 ones would stop at 256."""
    learner, state = parts('cnn', 'bfloat16')
    params = jax.tree.map(jnp.zeros_like, state.params)
    kernel = params['backbone']['conv_0']['kernel']
    params['backbone']['conv_0']['kernel'] = kernel.at[1, 1].set(1.0)
    white = {'image': np.full((256, *SHAPE), 255, np.uint8), 'label': np.zeros(256, np.int32)}
    state, _ = jax.jit(learner.train_step(UPDATE))(state.replace(params=params), white)
    mean = flatten(state.model_state)['batch_stats/backbone/norm_0/mean']
    np.testing.assert_allclose(mean, 0.1 * 3.0, rtol=1e-5)  # three channels of 1


def test_evaluation_uses_the_policy():
    learner, state = parts('vit', 'bfloat16')
    half = jax.jit(learner.eval_step())(state, batch())['loss']
    exact = replace(learner, precision=FLOAT32)
    single = jax.jit(exact.eval_step())(state, batch())['loss']
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, single, rtol=0.1, atol=0.01)
    assert (half != single).any()


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match="config.precision='bfloat'.*bfloat16"):
        parts('cnn', 'bfloat')


def test_the_float32_policy_changes_nothing():
    params = {'a': np.ones(2, np.float64)}
    assert FLOAT32.params(params) is params
