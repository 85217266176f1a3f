"""The train step: frozen parameters do not change and cost nothing; the rest is plain optax."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtrain.config import Config, base
from jaxtrain.config.durations import Run
from jaxtrain.optim.optimizers import make_optimizer
from jaxtrain.params.partition import flatten, nbytes
from jaxtrain.step import learner as learner_module
from jaxtrain.step.learner import make_learner, several_steps
from jaxtrain.step.state import Update, init_state
from jaxtrain.weights.bundle import resolve
from tests.support.inputs import image_source

HEAD_ONLY = (('backbone/.*', 'frozen'), ('.*', 'head'))
CLASSES = ('a', 'b', 'c')


@pytest.fixture
def quickly():
    """Skips optimisation, which would take longer than running the programs.

    Not for gradients through a max-pool, see tests/models/test_models.py.
    """
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def build(model=None, shape=(6, 6, 1), steps=200, **changes):
    """The learner of a config, its compiled steps, and a function for initial states."""
    tree = base().to_dict()
    tree['model'] = model or {'name': 'cnn', 'widths': (3, 4)}
    cfg = Config(tree).replace(**{'optim__schedule': ('constant',), **changes})
    cfg = resolve(cfg, None)
    learner = make_learner(cfg, image_source(8, shape, CLASSES))
    (shapes, norms), part = learner.variables, learner.part
    tx = make_optimizer(cfg.optim, list(part.groups), part.trainable, Run(steps, 8, 8)).tx
    update = Update(tx, cfg.ema)
    begin = jax.jit(lambda variables, seed: init_state(variables, seed, update, part))

    def start(seed=0):
        rng = np.random.default_rng(seed)
        params = jax.tree.map(lambda x: rng.normal(0.1, 0.4, x.shape).astype(x.dtype), shapes)
        return begin((params, jax.tree.map(lambda x: np.ones(x.shape, x.dtype), norms)), seed)

    return SimpleNamespace(
        learner=learner, task=learner.task, model=learner.model, part=part,
        start=start,
        pure=learner.train_step(update),
        train=jax.jit(learner.train_step(update)),
        evaluate=jax.jit(learner.eval_step()),
    )  # fmt: skip


def batch(seed=0, size=8, shape=(6, 6, 1)):
    rng = np.random.default_rng(seed)
    return {
        'image': rng.integers(0, 256, (size, *shape)).astype(np.uint8),
        'label': rng.integers(0, len(CLASSES), size).astype(np.int32),
    }


def same_bits(one, other) -> bool:
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.parametrize('frozen_norm', ['frozen', 'adapt'])
def test_frozen_parameters_are_bit_identical_after_200_steps(frozen_norm, quickly):
    parts = build(
        groups=HEAD_ONLY,
        frozen_norm=frozen_norm,
        optim__lr=0.01,
        optim__weight_decay=0.5,
        optim__decay_mult=(1.0,),
        optim__clip_norm=(0.5,),
        ema=0.9,
    )
    first = last = parts.start()
    step = parts.train
    for number in range(200):
        last, _ = step(last, batch(number))
    assert int(last.step) == 200
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((last.params, last.ema)))
    assert same_bits(first.params['backbone'], last.params['backbone'])
    before, after = flatten(first.params['head']), flatten(last.params['head'])
    assert all((before[path] != after[path]).any() for path in before)
    before, after = flatten(first.model_state), flatten(last.model_state)
    assert len(before) == 4
    if frozen_norm == 'frozen':
        assert same_bits(before, after)
    else:
        assert all((before[path] != after[path]).all() for path in before)


def test_a_partly_frozen_backbone_keeps_only_that_part():
    parts = build(groups=(('backbone/.*_0/.*', 'frozen'), ('.*', 'rest')), optim__lr=0.01)
    first = parts.start()
    last, _ = parts.train(first, batch())
    for tree in ('params', 'model_state'):
        before, after = flatten(getattr(first, tree)), flatten(getattr(last, tree))
        kept = {path for path in before if same_bits(before[path], after[path])}
        assert kept == {path for path in before if '_0/' in path}


def test_a_frozen_norm_uses_its_running_statistics(quickly):
    """The training loss of a linear probe equals the loss in evaluation."""
    parts = build(groups=HEAD_ONLY)
    state = parts.start()
    _, metrics = parts.train(state, batch())
    values = parts.evaluate(state, batch())
    assert float(metrics['loss']) == pytest.approx(float(values['loss'].mean()), rel=1e-6)
    _, adapted = build(groups=HEAD_ONLY, frozen_norm='adapt').train(state, batch())
    assert abs(float(adapted['loss']) - float(metrics['loss'])) > 1e-3


def test_a_frozen_backbone_has_no_optimizer_state(quickly):
    state = build(groups=HEAD_ONLY, optim__weight_decay=0.1).start()
    head = nbytes(state.params['head'])
    tx = optax.adamw(1e-3, weight_decay=0.1)
    alone = jax.eval_shape(tx.init, {'head': state.params['head']})
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert nbytes(moments) == 2 * head
    # Except for counters: kernels and biases have separate optimizers, as only kernels decay.
    assert nbytes(state.opt_state) - nbytes(alone) <= 16
    everything = build().start()
    assert nbytes(everything.opt_state) > 2 * nbytes(everything.params)


def test_a_frozen_backbone_halves_the_flops_even_if_the_gradient_norm_is_used(quickly):
    model, shape = {'name': 'cnn', 'widths': (24, 48, 96)}, (20, 20, 1)

    def flops(**changes) -> float:
        parts = build(model, shape, **changes)
        state = parts.start()
        lowered = parts.train.lower(state, batch(size=32, shape=shape))
        assert 'grad_norm' in lowered.out_info[1]
        return lowered.compile().cost_analysis()['flops']

    ratio = flops(groups=HEAD_ONLY, optim__clip_norm=(1.0,)) / flops(optim__clip_norm=(1.0,))
    assert 0.2 < ratio < 0.45


def test_a_step_equals_the_full_gradient_with_optax(quickly):
    parts = build({'name': 'cnn', 'widths': (3,)}, optim__lr=0.01, optim__weight_decay=0.1)
    state, data = parts.start(), batch()

    @jax.jit
    def loss(params):
        images = (data['image'] / 255.0 - 0.5) / 0.5
        logits, new = parts.model.apply(
            {'params': params, **state.model_state}, images, train=True, mutable=['batch_stats']
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), data['label'][:, None], 1)
        right = (logits.argmax(-1) == data['label']).mean()
        return -chosen.mean(), (new, right)

    (value, (new, right)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, state.params)
    tx = optax.adamw(0.01, weight_decay=0.1, mask=mask)
    updates, _ = jax.jit(tx.update)(grads, jax.jit(tx.init)(state.params), state.params)
    expected = jax.tree.map(np.add, state.params, updates)

    after, metrics = parts.train(state, data)
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
    assert float(metrics['loss']) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics['accuracy']) == pytest.approx(float(right))
    assert float(metrics['grad_norm']) == pytest.approx(norm, rel=1e-5)
    # It is the norm after the update, which differs from the norm before.
    sizes = [float(optax.global_norm(tree)) for tree in (expected, state.params)]
    assert float(metrics['param_norm']) == pytest.approx(sizes[0], rel=1e-6)
    assert abs(sizes[0] - sizes[1]) > 1e-3
    for tree, reference in ((after.params, expected), (after.model_state, new)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tree, reference)


def test_grad_norm_covers_trainable_parameters_before_clipping(quickly):
    clipped = build(groups=HEAD_ONLY, optim__clip_norm=(1e-3,))
    state = clipped.start()

    def loss(head):
        params = {**state.params, 'head': head}
        inputs = clipped.learner.inputs.evaluate(batch())
        logits = clipped.model.apply({'params': params, **state.model_state}, inputs, train=False)
        return clipped.task.values(logits, batch(), 0.0)['loss'].mean()

    expected = optax.global_norm(jax.jit(jax.grad(loss))(state.params['head']))
    after, metrics = clipped.train(state, batch())
    assert float(metrics['grad_norm']) == pytest.approx(float(expected), rel=1e-5)
    assert float(expected) > 1e-2
    held = float(optax.global_norm(after.params['head']))
    assert float(metrics['param_norm']) == pytest.approx(held, rel=1e-6)


def test_ema_against_its_recurrence(quickly):
    """It is first a plain mean, then exponential: the weight is max(1 - decay, 1 / (n + 1))."""
    parts = build(groups=HEAD_ONLY, optim__lr=0.1, ema=0.6)
    state, step = parts.start(), parts.train
    assert same_bits(state.ema, {'head': state.params['head']})
    seen, expected = [], None
    for number in range(6):
        state, _ = step(state, batch(number))
        kernel = np.asarray(state.params['head']['logits']['kernel'], np.float64)
        seen.append(kernel)
        weight = max(0.4, 1 / (number + 1))
        expected = kernel if expected is None else expected + weight * (kernel - expected)
        np.testing.assert_allclose(state.ema['head']['logits']['kernel'], expected, atol=1e-6)
        if number == 1:
            np.testing.assert_allclose(expected, np.mean(seen, 0), atol=1e-12)
    assert set(state.ema) == {'head'}


def test_without_ema_the_state_has_no_average(quickly):
    parts = build()
    state, _ = parts.train(parts.start(), batch())
    assert state.ema == {}
    assert state.averaged_params(parts.part) is state.params


RANDOM = {
    'augmentation': dict(data__augment=(('noise', 40.0),)),
    'dropout': dict(model={'name': 'cnn', 'widths': (3,), 'hidden': (16,), 'dropout': 0.5}),
}


@pytest.mark.parametrize('kind', RANDOM)
def test_random_numbers_depend_only_on_seed_and_step(kind, quickly):
    parts = build(**RANDOM[kind])
    state, train = parts.start(), parts.train

    def loss(**changes) -> float:
        changes = {name: jnp.asarray(v, getattr(state, name).dtype) for name, v in changes.items()}
        return float(train(state.replace(**changes), batch())[1]['loss'])

    here = loss(seed=3, step=5)
    assert loss(seed=3, step=5) == here
    assert len({here, loss(seed=4, step=5), loss(seed=3, step=6), loss(seed=5, step=3)}) == 4


def test_augmentation_and_dropout_have_separate_keys():
    parts = build({'name': 'mlp', 'hidden': (5,)})
    keys = {}

    def augment(batch, key):
        keys['augmentation'] = key
        return parts.learner.inputs.evaluate(batch), batch

    def apply(*args, rngs, **options):
        keys['dropout'] = rngs['dropout']
        return parts.model.apply(*args, rngs=rngs, **options)

    inputs = replace(parts.learner.inputs, train=augment)
    sgd = optax.sgd(0.1)
    learner = replace(parts.learner, model=SimpleNamespace(apply=apply), inputs=inputs)
    step = learner.train_step(Update(sgd))
    state = parts.start().replace(opt_state=sgd.init({}))
    step(state, batch())
    bits = [tuple(jax.random.key_data(key).tolist()) for key in keys.values()]
    whole = jax.random.fold_in(jax.random.key(state.seed), state.step)
    assert len({*bits, tuple(jax.random.key_data(whole).tolist())}) == 3


def test_without_dropout_and_augmentation_nothing_is_random(quickly):
    parts = build()
    state, train = parts.start(), parts.train
    other = state.replace(seed=jnp.uint32(9), step=jnp.int32(9))
    assert float(train(state, batch())[1]['loss']) == float(train(other, batch())[1]['loss'])


def test_one_program_serves_every_seed(quickly):
    parts = build(data__augment=(('noise', 1.0),))
    traces = []

    @jax.jit
    def step(state, data):
        traces.append(1)
        return parts.pure(state, data)

    losses = [float(step(parts.start(seed), batch())[1]['loss']) for seed in (0, 1)]
    assert losses[0] != losses[1]
    assert len(traces) == 1
    texts = {parts.train.lower(parts.start(s), batch()).as_text() for s in (0, 1)}
    assert len(texts) == 1


def test_label_smoothing_applies_only_in_training(quickly):
    smooth, plain = (build(groups=HEAD_ONLY, task__label_smoothing=s) for s in (0.3, 0.0))
    state = plain.start()
    trained = [float(p.train(state, batch())[1]['loss']) for p in (smooth, plain)]
    assert abs(trained[0] - trained[1]) > 1e-3
    evaluated = [p.evaluate(state, batch())['loss'] for p in (smooth, plain)]
    np.testing.assert_array_equal(*evaluated)


def test_eval_step_returns_one_value_per_example(quickly):
    parts = build()
    state, data = parts.start(), batch(size=5)
    values = parts.evaluate(state, data)
    images = (np.asarray(data['image'], np.float32) / 255 - 0.5) / 0.5
    variables = {'params': state.params, **state.model_state}
    apply = jax.jit(parts.model.apply, static_argnames='train')
    logits = np.asarray(apply(variables, images, train=False), np.float64)
    labels = np.asarray(data['label'])
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels]
    np.testing.assert_allclose(values['loss'], loss, rtol=1e-4)
    np.testing.assert_array_equal(values['accuracy'], (logits.argmax(1) == labels).astype(float))
    alone = {name: np.asarray(leaf)[3:4] for name, leaf in data.items()}
    one = parts.evaluate(state, alone)['loss']
    np.testing.assert_allclose(one, values['loss'][3:4], rtol=1e-5)


def test_eval_step_uses_the_ema_if_there_is_one(quickly):
    parts = build(groups=HEAD_ONLY, ema=0.9)
    state = parts.start()
    moved = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape), state.ema)
    with_average = parts.evaluate(state.replace(ema=moved), batch())
    by_hand = state.replace(params={**state.params, 'head': moved['head']}, ema={})
    np.testing.assert_array_equal(with_average['loss'], parts.evaluate(by_hand, batch())['loss'])
    plain = parts.evaluate(state.replace(ema={}), batch())['loss']
    assert (np.asarray(with_average['loss']) != np.asarray(plain)).all()


def test_a_model_without_batch_norm(quickly):
    """Its model state is empty, and freezing works as for other models."""
    parts = build({'name': 'mlp', 'hidden': (5,), 'dropout': 0.5}, groups=HEAD_ONLY, optim__lr=0.1)
    first = parts.start()
    last, _ = parts.train(first, batch())
    assert first.model_state == last.model_state == {}
    assert same_bits(first.params['backbone'], last.params['backbone'])
    assert not same_bits(first.params['head'], last.params['head'])


def test_several_steps_in_one_call_equal_single_steps():
    made = build(model={'name': 'mlp', 'hidden': (5,), 'dropout': 0.3}, data__augment=(('flip',),))
    batches = [batch(seed) for seed in range(4)]
    state, rows = made.start(), []
    for one in batches:
        state, metrics = made.train(state, one)
        rows.append(metrics)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    at_once, columns = jax.jit(several_steps(made.pure))(made.start(), stacked)
    assert int(at_once.step) == 4 and not np.allclose(rows[0]['loss'], rows[3]['loss'])
    assert set(columns) == set(rows[0])
    for name, column in columns.items():
        np.testing.assert_allclose(column, [row[name] for row in rows], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        at_once.params,
        state.params,
    )


def test_augmentation_dropout_and_initial_parameters_have_different_keys(monkeypatch):
    """Of all steps, and of the parts of a batch: no key occurs twice."""
    parts, keys = build(), []

    def note(key):
        keys.append(tuple(jax.random.key_data(key).tolist()))

    def inputs(batch, key):
        note(key)
        return parts.learner.inputs.evaluate(batch), batch

    def gradient(trainable, model_state, whole, key):
        note(key)
        return trainable, {'weight': jnp.ones(())}, model_state

    monkeypatch.setattr(learner_module, 'gradients', lambda loss, accumulate: gradient)
    learner = replace(parts.learner, inputs=replace(parts.learner.inputs, train=inputs))
    step = learner.train_step(Update(optax.identity()))
    state = parts.start(seed=5)
    for _ in range(3):
        state, _ = step(state, batch())
    note(jax.random.key(5))  # that of `init_variables`
    assert len(set(keys)) == len(keys) == 7
