"""The optimizer that the rules describe, compared with plain optax on the same parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtrain.config import Config, base
from jaxtrain.config.durations import Run
from jaxtrain.errors import UserError
from jaxtrain.optim import optimizers
from jaxtrain.optim.optimizers import OPTIMIZERS, keras_adam, make_optimizer, muon
from jaxtrain.optim.schedules import make_schedule
from jaxtrain.params.partition import flatten, unflatten

STEPS = 12
PATHS = ['backbone/a/kernel', 'backbone/a/bias', 'head/b/kernel', 'head/b/bias']
SHAPES = dict(zip(PATHS, [(4, 3), (3,), (3, 2), (2,)], strict=True))


@pytest.fixture(autouse=True, scope='module')
def quickly():
    """Skips optimisation, which would take longer than running these programs."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def draw(seed: int) -> dict:
    """A tree of normally distributed numbers with the shapes of the parameters."""
    rng = np.random.default_rng(seed)
    return unflatten({p: jnp.asarray(rng.normal(size=s), jnp.float32) for p, s in SHAPES.items()})


def settings(args=None, **changes):
    tree = base().to_dict()
    tree['optim']['schedule'] = ('constant',)
    tree['optim']['args'] = args or {}
    return Config(tree).replace(**{f'optim__{key}': v for key, v in changes.items()}).optim


def make(args=None, steps=STEPS, trainable=PATHS, **changes):
    return make_optimizer(settings(args, **changes), PATHS, list(trainable), length(steps))


def length(steps: int) -> Run:
    return Run(steps, batch_size=4, examples=8)


def run(tx, params=None, steps=STEPS) -> dict[str, np.ndarray]:
    """Parameters by path after some steps with different gradients."""
    params = draw(0) if params is None else params
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        grads = jax.tree.map(lambda p, g: p + g, params, select(draw(step + 1), params))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return flatten(params)


def select(tree, like):
    kept = flatten(like)
    return unflatten({p: leaf for p, leaf in flatten(tree).items() if p in kept})


def agree(one: dict, other: dict, tolerance=2e-6):
    assert set(one) == set(other)
    for path in one:
        np.testing.assert_allclose(one[path], other[path], atol=tolerance, rtol=0, err_msg=path)


def fault(**changes) -> str:
    with pytest.raises(UserError) as caught:
        make(**changes)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw', 'lion'])
def test_without_rules_the_optimizer_is_plain_optax(name):
    extra = {'weight_decay': 0.0} if name in ('adamw', 'lion') else {}
    agree(run(make(name=name, lr=0.1).tx), run(getattr(optax, name)(0.1, **extra)))


def test_lr_mult_scales_the_learning_rate_of_each_leaf():
    made = make(lr=0.1, lr_mult=(('backbone/.*/kernel', 0.1), ('backbone/.*', 0), ('head/.*', 2.0)))
    expected = {}
    for path, rate in zip(PATHS, (0.01, 0.0, 0.2, 0.2), strict=True):
        alone = unflatten({path: flatten(draw(0))[path]})
        expected |= run(optax.adamw(rate, weight_decay=0.0), alone)
    after = run(made.tx)
    agree(after, expected)
    np.testing.assert_array_equal(after['backbone/a/bias'], flatten(draw(0))['backbone/a/bias'])
    assert made.lr_mult == dict(zip(PATHS, (0.1, 0, 2.0, 2.0), strict=True))


def test_lr_mult_scales_a_schedule():
    made = make(lr=0.1, schedule=('cosine',), warmup='3 steps', lr_mult=(0.5,), name='sgd')
    curve = make_schedule(settings(lr=0.1, warmup='3 steps'), 'cosine', length(STEPS))
    agree(run(made.tx), run(optax.sgd(lambda step: 0.5 * curve(step))))


def test_schedules_follow_rules():
    made = make(lr=0.1, name='sgd', schedule=(('head/.*', 'constant'), ('.*', 'linear')))
    whole = draw(0)
    expected = run(optax.sgd(0.1), {'head': whole['head']})
    curve = optax.linear_schedule(0.1, 0.0, STEPS)
    agree(run(made.tx), expected | run(optax.sgd(curve), {'backbone': whole['backbone']}))


def test_decay_mult_is_the_mask_of_adamw():
    made = make(lr=0.1, weight_decay=0.3)  # by default only kernels decay
    mask = unflatten({path: path.endswith('kernel') for path in PATHS})
    agree(run(made.tx), run(optax.adamw(0.1, weight_decay=0.3, mask=mask)))
    assert made.decay == {path: 0.3 if path.endswith('kernel') else 0.0 for path in PATHS}


def test_decay_mult_is_a_factor():
    made = make(lr=0.1, weight_decay=0.2, decay_mult=(('head/.*', 0.5), ('.*', 1.0)))
    whole = draw(0)
    expected = run(optax.adamw(0.1, weight_decay=0.1), {'head': whole['head']})
    expected |= run(optax.adamw(0.1, weight_decay=0.2), {'backbone': whole['backbone']})
    agree(run(made.tx), expected)


@pytest.mark.parametrize('nesterov', [False, True])
def test_weight_decay_of_sgd_is_an_l2_penalty(nesterov):
    """Its gradient is added before momentum: `g + weight_decay * p`."""
    args = {'momentum': 0.9, 'nesterov': nesterov}
    made = make(args, name='sgd', lr=0.05, weight_decay=0.2, decay_mult=(1.0,))
    params, velocity = flatten(draw(0)), dict.fromkeys(PATHS, 0.0)
    for step in range(STEPS):
        noise = flatten(draw(step + 1))
        for path in PATHS:
            grad = params[path] + noise[path] + 0.2 * params[path]
            velocity[path] = 0.9 * velocity[path] + grad
            ahead = grad + 0.9 * velocity[path]
            params[path] = params[path] - 0.05 * (ahead if nesterov else velocity[path])
    agree(run(made.tx), params)


def test_clip_norm_covers_the_parameters_with_the_same_limit():
    made = make(lr=0.1, name='sgd', clip_norm=(('head/.*', 0.5), ('.*/bias', 0), ('.*', 1.5)))
    clip, whole = optax.clip_by_global_norm, draw(0)
    plain = optax.sgd(0.1)
    expected = run(optax.chain(clip(0.5), plain), {'head': whole['head']})
    kernel = {'backbone': {'a': {'kernel': whole['backbone']['a']['kernel']}}}
    expected |= run(optax.chain(clip(1.5), plain), kernel)
    expected |= run(plain, {'backbone': {'a': {'bias': whole['backbone']['a']['bias']}}})
    agree(run(made.tx), expected)


@pytest.mark.parametrize('version', [1, 2])
def test_rules_of_clip_norm_with_the_same_limit_have_norms_of_their_own(version):
    """In version 1 they shared one, which runs of that time continue."""
    cfg = settings(lr=0.1, name='sgd', clip_norm=(('head/.*', 0.5), ('.*', 0.5)))
    made = make_optimizer(cfg, PATHS, list(PATHS), Run(STEPS, 1, STEPS, version))
    clipped, whole = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)), draw(0)
    apart = run(clipped, {'head': whole['head']}) | run(clipped, {'backbone': whole['backbone']})
    agree(run(made.tx), apart if version == 2 else run(clipped))


def test_the_order_of_optimizers_does_not_depend_on_hashes():
    """Otherwise processes that train together would compile different programs."""
    rates = (('backbone/a/kernel', 3.0), ('backbone/.*', 0.5), ('head/.*/bias', 2.0), ('.*', 1.0))
    seen = []

    def spy(optimizers, labels):
        seen.append(list(optimizers))
        return optax.identity()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optax, 'partition', spy)
        make(lr_mult=rates, clip_norm=rates)
    assert [len(names) for names in seen] == [4, 4]
    assert all(names == sorted(names) for names in seen)


def test_clip_norm_over_everything():
    clipped = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
    agree(run(make(lr=0.1, name='sgd', clip_norm=(0.5,)).tx), run(clipped))


def test_clipping_precedes_the_weight_decay_of_sgd():
    made = make(lr=0.1, name='sgd', weight_decay=0.3, decay_mult=(1.0,), clip_norm=(0.5,))
    clip, decay = optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.3)
    agree(run(made.tx), run(optax.chain(clip, decay, optax.sgd(0.1))))


def test_rules_cover_all_paths_but_clipping_only_trained_ones():
    """A rule about frozen parameters is not an error, and they do not contribute to norms."""
    head = [path for path in PATHS if path.startswith('head')]
    made = make(
        trainable=head, name='sgd', lr=0.1, clip_norm=(0.5,), lr_mult=(('head/.*', 1), ('.*', 0.1))
    )
    clipped = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
    only_head = {'head': draw(0)['head']}
    agree(run(made.tx, only_head), run(clipped, only_head))
    assert set(made.lr_mult) == set(made.decay) == set(head)


def test_frozen_parameters_have_no_optimizer_state():
    head = [path for path in PATHS if path.startswith('head')]
    only_head = {'head': draw(0)['head']}
    made = make(trainable=head, weight_decay=0.1, clip_norm=(1.0,)).tx.init(only_head)
    moments = [leaf for leaf in jax.tree.leaves(made) if leaf.ndim]
    assert sorted(m.shape for m in moments) == sorted([SHAPES[path] for path in head] * 2)


def test_learning_rate_is_the_largest_of_any_parameter():
    made = make(
        lr=0.1,
        lr_mult=(('head/.*', 2.0), ('.*', 1.0)),
        schedule=(('head/.*', 'linear'), ('.*', 'constant')),
        steps=10,
    )
    expected = [max(0.2 * (1 - step / 10), 0.1) for step in range(10)]
    np.testing.assert_allclose([*map(made.learning_rate, range(10))], expected, rtol=1e-6)


def test_learning_rates_of_a_long_run_are_computed_in_blocks(monkeypatch):
    monkeypatch.setattr(optimizers, 'BLOCK', 4)
    made = make(lr=0.1, schedule=('linear',), steps=10)
    expected = [0.1 * (1 - step / 10) for step in range(10)]
    np.testing.assert_allclose([*map(made.learning_rate, range(10))], expected, rtol=1e-6)


def test_learning_rate_ignores_frozen_parameters():
    made = make(trainable=PATHS[2:], lr=0.1, lr_mult=(('backbone/.*', 9.0), ('.*', 1.0)), steps=3)
    np.testing.assert_allclose([*map(made.learning_rate, range(3))], [0.1] * 3, rtol=1e-6)


def test_args_reach_optax():
    made = make({'b1': 0.5, 'eps': 1e-2}, name='adam', lr=0.1)
    agree(run(made.tx), run(optax.adam(0.1, b1=0.5, eps=1e-2)))


def test_known_optimizers():
    """The table holds optax's optimizers by name, the two defined here, and nothing else."""
    made_here = {'keras_adam': keras_adam, 'muon': muon}
    assert {name: OPTIMIZERS[name] for name in made_here} == made_here
    from_optax = {name: f for name, f in OPTIMIZERS.items() if name not in made_here}
    assert all(make is getattr(optax, name) for name, make in from_optax.items())
    common = {
        'sgd', 'adam', 'adamw', 'adamax', 'nadam', 'nadamw', 'radam', 'lion', 'lamb', 'lars',
        'rmsprop', 'adagrad', 'adadelta', 'adafactor', 'adabelief', 'novograd', 'yogi',
    }  # fmt: skip
    # In optax these two are functools.partial objects of adam and adamw with `nesterov`.
    assert common - set(from_optax) == {'nadam', 'nadamw'}
    for name in from_optax:
        tx, params = make(name=name, lr=0.1).tx, draw(0)
        updates, state = jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), params)  # noqa: B023
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params), name
        keys = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
        assert not keys, f'{name}: Orbax does not save random keys'
    others = {
        'chain', 'masked', 'partition', 'apply_updates', 'clip_by_global_norm', 'lookahead',
        'add_decayed_weights', 'cosine_decay_schedule', 'linear_schedule', 'scale_by_adam',
        'scale_by_rprop', 'scale_by_learning_rate',
    }  # fmt: skip
    assert not others & set(OPTIMIZERS)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'name': 'adamz'}, ["config.optim.name='adamz'", "'adam'"]),
        ({'schedule': ('cosinus',)}, ["schedule: 'cosinus'", "'cosine'"]),
        ({'args': {'b3': 1.0}}, ['optim.args.b3', 'adamw', "'b"]),
        ({'args': {'weight_decay': 1.0}}, ['optim.args.weight_decay', 'a separate key']),
        ({'args': {'learning_rate': 1.0}}, ['optim.args.learning_rate', 'a separate key']),
        ({'args': {'mask': None}}, ['optim.args.mask', 'a separate key']),
        ({'name': 'adam', 'weight_decay': 0.1}, ['adam has no weight decay', 'adamw']),
        ({'warmup': '100%'}, ["warmup='100%' must be", f'less than the {STEPS} steps']),
        ({'warmup': '-1 steps'}, ["config.optim.warmup='-1 steps' is not a duration"]),
        ({'schedule': ('rsqrt',)}, ["'rsqrt' falls from the end of the warm-up"]),
        ({'schedule': ('wsd',)}, ["'wsd' falls in the cool-down"]),
        (
            {'schedule': ('wsd',), 'warmup': '50%', 'cooldown': '50%'},
            ["warmup='50%' and config.optim.cooldown='50%' must be less than"],
        ),
        ({'name': 'adafactor', 'args': {'weight_decay_rate': 0.1}}, ['a separate key']),
        ({'lr': -1.0}, ['config.optim.lr=-1.0 is negative']),
        ({'lr': float('nan')}, ['config.optim.lr=nan']),
        ({'weight_decay': -0.1}, ['config.optim.weight_decay=-0.1 is negative']),
        ({'lr_end': -0.1, 'schedule': ('cosine',)}, ['config.optim.lr_end=-0.1 is negative']),
        ({'lr_end': -0.1, 'schedule': ('linear',)}, ['config.optim.lr_end=-0.1 is negative']),
        (
            {'lr_end': -0.1, 'schedule': ('wsd',), 'cooldown': '50%'},
            ['config.optim.lr_end=-0.1 is negative'],
        ),
        ({'lr_mult': (('heat/.*', 1), ('.*', 1))}, ['config.optim.lr_mult', "'head/.*'?"]),
        ({'clip_norm': (('head/.*', 1),)}, ['config.optim.clip_norm: no rule matches backbone']),
        ({'clip_norm': ('x',)}, ['config.optim.clip_norm']),
        (
            {'weight_decay': 0.1, 'decay_mult': (('.*/kernels', 1.0), ('.*', 0.0))},
            ['config.optim.decay_mult', "'.*/kernels'"],
        ),
    ],
)
def test_invalid_settings_are_refused(changes, words):
    message = fault(**changes)
    assert all(word in message for word in words), message


def test_adam_accepts_weight_decay_that_applies_to_no_trained_parameter():
    made = make(name='adam', lr=0.1, weight_decay=0.1, decay_mult=(0.0,))
    agree(run(made.tx), run(optax.adam(0.1)))


def test_weight_decay_of_lamb_follows_rules():
    made = make(name='lamb', lr=0.1, weight_decay=0.3)
    mask = unflatten({path: path.endswith('kernel') for path in PATHS})
    agree(run(made.tx), run(optax.lamb(0.1, weight_decay=0.3, mask=mask)))


def test_weight_decay_of_adafactor_is_scaled_by_the_learning_rate():
    """As in AdamW: p - lr * (update + decay * p); optax's own argument is not scaled."""
    made = make(name='adafactor', lr=0.1, weight_decay=0.3, schedule=('linear',), decay_mult=(1.0,))
    curve = optax.linear_schedule(0.1, 0.0, STEPS)
    tx, params = optax.adafactor(curve), draw(0)
    state = tx.init(params)
    for step in range(STEPS):
        grads = jax.tree.map(lambda p, g: p + g, params, draw(step + 1))
        updates, state = tx.update(grads, state, params)
        rate = float(curve(step))
        params = jax.tree.map(lambda p, u: p + u - rate * 0.3 * p, params, updates)  # noqa: B023
    agree(run(made.tx), flatten(params))


MATRICES = {
    'backbone/tokens/embedding': (9, 6),
    'backbone/patch/kernel': (2, 2, 3, 6),
    'backbone/block_0/attention/query/kernel': (6, 2, 3),
    'backbone/block_0/attention/query/bias': (2, 3),
    'backbone/block_0/attention/out/kernel': (2, 3, 6),
    'backbone/block_0/mlp/up/kernel': (6, 8),
    'backbone/conv_1/kernel': (3, 3, 4, 5),
    'head/logits/kernel': (6, 9),
}
HIDDEN = {  # (rows, columns) of each kernel as a matrix
    'backbone/block_0/attention/query/kernel': (6, 6),
    'backbone/block_0/attention/out/kernel': (6, 6),
    'backbone/block_0/mlp/up/kernel': (6, 8),
    'backbone/conv_1/kernel': (36, 5),
}


def muon_updates(**changes) -> tuple[dict, dict]:
    """(gradients, updates of the first step with learning rate 1), by path."""
    rng = np.random.default_rng(0)
    grads = {p: jnp.asarray(rng.normal(size=s), jnp.float32) for p, s in MATRICES.items()}
    cfg = settings(name='muon', lr=1.0, **changes)
    tx = make_optimizer(cfg, list(MATRICES), list(MATRICES), length(STEPS)).tx
    params = unflatten({p: jnp.ones(s) for p, s in MATRICES.items()})
    updates, _ = tx.update(unflatten(grads), tx.init(params), params)
    return grads, flatten(updates)


def test_muon_orthogonalises_hidden_kernels_and_adam_updates_the_rest():
    grads, updates = muon_updates(args={'ns_steps': 12, 'nesterov': False})
    for path, (rows, columns) in HIDDEN.items():
        update = np.asarray(updates[path]).reshape(rows, columns)
        left, _, right = np.linalg.svd(np.asarray(grads[path]).reshape(rows, columns), False)
        # The nearest orthogonal matrix, scaled by shape; the iteration is within a few percent.
        nearest = -(left @ right) * max(1, columns / rows) ** 0.5
        cosine = (update * nearest).sum() / np.linalg.norm(update) / np.linalg.norm(nearest)
        assert cosine > 0.97, path
        assert np.linalg.norm(update) == pytest.approx(np.linalg.norm(nearest), rel=0.2), path
    for path in set(MATRICES) - set(HIDDEN):
        # Adam's first step is the sign of the gradient.
        np.testing.assert_allclose(updates[path], -np.sign(grads[path]), atol=1e-3, err_msg=path)


def test_consistent_rms_makes_muon_updates_as_large_as_adams():
    """With a scale of 0.2 * sqrt(max(rows, columns)), the RMS of every update is 0.2."""
    args = {'ns_steps': 12, 'nesterov': False}
    _, plain = muon_updates(args=args)
    _, updates = muon_updates(args=args | {'consistent_rms': 0.2})
    for path, (rows, columns) in HIDDEN.items():
        factor = 0.2 * max(rows, columns) ** 0.5 / max(1, columns / rows) ** 0.5
        np.testing.assert_allclose(updates[path], factor * plain[path], rtol=1e-5, err_msg=path)
    for path in set(MATRICES) - set(HIDDEN):
        np.testing.assert_array_equal(updates[path], plain[path], err_msg=path)


def test_weight_decay_applies_to_both_parts_of_muon():
    _, plain = muon_updates()
    _, decayed = muon_updates(weight_decay=0.25)  # on kernels
    for path in MATRICES:
        change = np.asarray(decayed[path] - plain[path])
        expected = -0.25 if path.endswith('kernel') else 0.0
        np.testing.assert_allclose(change, expected, atol=1e-5, err_msg=path)


@pytest.mark.parametrize('key', ['lr_mult', 'clip_norm'])
def test_negative_factors_are_refused(key):
    assert key in fault(**{key: (-1.0,)})


def test_nearly_equal_settings_get_separate_optimizers():
    cfg = Config(base().to_dict()).replace(
        optim__lr_mult=(('a/.*', 0.12345671), ('b/.*', 0.12345679)),
        optim__decay_mult=(('.*', 1),),
    )
    paths = ['a/kernel', 'b/kernel']
    made = make_optimizer(cfg.optim, paths, paths, length(10))
    params = {'a': {'kernel': jnp.ones(3)}, 'b': {'kernel': jnp.ones(3)}}
    assert len(made.tx.init(params).inner_states) == 2


def test_keras_adam_against_its_formula():
    """lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), with gradients as small as eps."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(0, 10.0 ** rng.integers(-9, 1, (12, 40)))
    tx = make_optimizer(
        settings(name='keras_adam', lr=0.01, args={'eps': 1e-4}), ['w'], ['w'], length(12)
    ).tx
    params = {'w': jnp.zeros(40)}
    state, update = tx.init(params), jax.jit(tx.update)
    m = v = 0.0
    for t, gradient in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected = -0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-4)
        updates, state = update({'w': jnp.asarray(gradient, jnp.float32)}, state, params)
        np.testing.assert_allclose(updates['w'], expected, rtol=1e-3, atol=1e-9)
