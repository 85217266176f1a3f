"""Gradients that are accumulated over parts of a batch equal those of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtrain.config import Config, base
from jaxtrain.data.sources.source import Source
from jaxtrain.data.tokenizer import open_tokenizer
from jaxtrain.errors import UserError
from jaxtrain.loop.job import make_job
from jaxtrain.params.partition import flatten
from jaxtrain.step.learner import make_learner
from jaxtrain.step.state import Update, init_state
from jaxtrain.weights.bundle import resolve
from tests.support.inputs import image_source, window_source

CLASSES = ('a', 'b', 'c')
TX = optax.adam(1e-2)


@pytest.fixture(autouse=True, scope='module')
def quickly():
    """Skips optimisation, which would take longer than running these programs."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def start(model: dict, source: Source, **changes):
    """A function (number of parts, batch) -> (state, metrics) of the first step, in float64."""
    tree = base().to_dict() | {'model': model}
    cfg = resolve(Config(tree).replace(**changes), None)
    learner = make_learner(cfg, source)
    shapes, stats = learner.variables
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0.1, 0.3, x.shape)), shapes)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape), stats)
    state = init_state((params, zero), 0, Update(TX), learner.part)

    @functools.cache
    def compiled(parts: int):
        return jax.jit(learner.train_step(Update(TX, accumulate=parts)))

    return lambda parts, batch: compiled(parts)(state, batch)


def image_batch(size: int) -> dict:
    rng = np.random.default_rng(1)
    return {
        'image': rng.integers(0, 256, (size, 6, 6, 1)).astype(np.uint8),
        'label': rng.integers(0, len(CLASSES), size).astype(np.int32),
    }


def distance(one, other) -> float:
    """The largest difference between leaves, relative to the largest value of the leaf."""
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return max(float(abs(a - b).max() / (abs(b).max() + 1e-30)) for a, b in pairs)


@pytest.mark.parametrize(('size', 'parts'), [(256, 8), (250, 8)])
def test_accumulated_gradients_of_images_equal_those_of_the_batch(size, parts):
    """Also if the last part has padding rows, which do not count."""
    with jax.enable_x64(True):
        model = {'name': 'mlp', 'hidden': (8,)}
        augment = (('flip',), ('shift', 1), ('noise', 9.0))
        step = start(model, image_source(999, (6, 6, 1), CLASSES), data__augment=augment)
        (whole, metrics), (accumulated, sums) = (step(n, image_batch(size)) for n in (1, parts))
        assert distance(accumulated.params, whole.params) < 1e-9
        assert distance(accumulated.opt_state, whole.opt_state) < 1e-6
        assert distance(sums, metrics) < 1e-6
        # A step in which one row counts for another differs, so wrong weights would be noticed.
        other = {
            name: np.concatenate([rows[:-1], rows[:1]]) for name, rows in image_batch(size).items()
        }
        assert distance(step(1, other)[0].params, whole.params) > 1e-6


@pytest.mark.parametrize('parts', [pytest.param(4, marks=pytest.mark.slow), 3])
def test_tokens_have_equal_weight_whatever_their_window(parts):
    """The weight of a window is its number of targets, in any part."""
    tokens = np.random.default_rng(2).integers(0, 257, (8, 9)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    for row, length in enumerate((8, 1, 8, 2, 8, 3, 0, 8)):
        targets[row, length:] = -1
    batch = {'tokens': tokens[:, :-1], 'targets': targets}
    with jax.enable_x64(True):
        model = {'name': 'gpt', 'width': 8, 'depth': 1, 'heads': 2, 'context': 8}
        source = window_source(99, 8, open_tokenizer('bytes'))
        step = start(model, source, task__name='lm')
        (whole, metrics), (accumulated, sums) = (step(n, batch) for n in (1, parts))
        assert distance(accumulated.params, whole.params) < 1e-9
        assert distance(sums, metrics) < 1e-6
        other = {'tokens': batch['tokens'], 'targets': targets.copy()}
        other['targets'][0] = -1  # one window counts for nothing
        assert distance(step(1, other)[0].params, whole.params) > 1e-3


def test_batch_norm_updates_its_statistics_part_by_part():
    with jax.enable_x64(True):
        step = start({'name': 'cnn', 'widths': (3,)}, image_source(99, (6, 6, 1), CLASSES))
        batch = image_batch(12)
        state, _ = step(3, batch)
        key, mean = 'batch_stats/backbone/norm_0/mean', 0.0
        for part in range(3):
            rows = {name: values[part::3] for name, values in batch.items()}
            alone = flatten(step(1, rows)[0].model_state)[key]  # from a mean of 0
            mean = 0.9 * mean + alone
        np.testing.assert_allclose(flatten(state.model_state)[key], mean, rtol=1e-6)


def test_dropout_masks_differ_between_parts():
    """With one key for all parts, equal rows at equal positions would lose the same units."""
    model = {'name': 'mlp', 'hidden': (64,), 'dropout': 0.5}
    with jax.enable_x64(True):
        step = start(model, image_source(99, (6, 6, 1), CLASSES))
        same = {name: np.repeat(rows, 4, 0) for name, rows in image_batch(1).items()}
        whole, parts = step(1, {n: r[:1] for n, r in same.items()})[0], step(4, same)[0]
        one, several = (
            (flatten(state.opt_state[0].mu)['head/logits/kernel'] != 0).any(1).mean()
            for state in (whole, parts)
        )
        # Fractions of the active units that remain: 1/2, and 1 - 1/2 ** 4 in any of 4 parts.
        assert several > 1.5 * one > 0.3


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'accumulate': 0}, 'config.accumulate=0 must be at least 1'),
        ({'accumulate': 33}, 'at most config.batch_size=32'),
        ({'accumulate': 5}, 'does not divide config.batch_size=32, and BatchNorm'),
    ],
)
def test_invalid_accumulate_is_refused(changes, message):
    c = base()
    c.data.name, c.batch_size, c.steps = 'digits', 32, 1
    with pytest.raises(UserError, match=message):
        make_job(Config(c.to_dict()).replace(**changes))
