"""Tests of mixup and CutMix: pixels and labels agree on the share of each example."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxtrain.config import Config, base
from jaxtrain.data.on_device.mixing import make_mix
from jaxtrain.weights.bundle import resolve

KEY = jax.random.key(5)
COUNT, HEIGHT, WIDTH = 400, 16, 24
# Each image has one grey level, so that a mixed pixel reveals its shares.
LEVELS = np.random.default_rng(0).permutation(COUNT).astype(np.float32)
IMAGES = np.broadcast_to(LEVELS[:, None, None, None], (COUNT, HEIGHT, WIDTH, 2))
BATCH = {'image': IMAGES, 'label': np.arange(COUNT, dtype=np.int32)}
BEFORE = np.roll(LEVELS, 1)


@pytest.fixture(autouse=True, scope='module')
def without_optimisation():
    """These programs run for less time than it takes to optimise them."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@cache
def compiled(mixup: float, cutmix: float):
    cfg = Config(base().to_dict()).replace(data__mixup=mixup, data__cutmix=cutmix)
    return jax.jit(make_mix(resolve(cfg, None).data))


def mixed(key=KEY, mixup=0.0, cutmix=0.0):
    images, batch = compiled(mixup, cutmix)(key, jnp.asarray(IMAGES), BATCH)
    return np.asarray(images), {name: np.asarray(x) for name, x in batch.items()}


def shares(images: np.ndarray) -> np.ndarray:
    """Return the share of the first image in each pixel, [batch, height, width]."""
    assert np.ptp(images, axis=-1).max() == 0
    first, other = LEVELS[:, None, None], BEFORE[:, None, None]
    return (images[..., 0] - other) / (first - other)


@pytest.mark.parametrize(
    'changes', [{'mixup': 0.2}, {'cutmix': 1.0}, {'mixup': 0.2, 'cutmix': 1.0}]
)
def test_labels_are_mixed_in_the_shares_of_the_pixels(changes):
    images, batch = mixed(**changes)
    np.testing.assert_array_equal(batch['label'], BATCH['label'])
    np.testing.assert_array_equal(batch['mix_label'], np.roll(BATCH['label'], 1))
    np.testing.assert_allclose(batch['mix'], shares(images).mean((1, 2)), atol=1e-3)
    assert (batch['mix'].dtype, batch['mix'].shape) == (np.float32, (COUNT,))
    assert (batch['mix_label'].dtype, batch['mix_label'].shape) == (np.int32, (COUNT,))


@pytest.mark.parametrize('alpha', [0.2, 4.0])
def test_mixup_draws_a_share_for_each_example_from_beta(alpha):
    images, batch = mixed(mixup=alpha)
    result = shares(images)
    assert np.ptp(result, axis=(1, 2)).max() < 1e-3  # one share for a whole image
    assert stats.kstest(batch['mix'], stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_cutmix_pastes_a_rectangle_of_the_aspect_of_the_image():
    images, batch = mixed(cutmix=1.0)
    pasted = shares(images) == 0
    assert (pasted | (shares(images) == 1)).all()  # each pixel comes from one of the two images
    clipped = 0
    for mask in pasted[pasted.any((1, 2))]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[np.ix_(rows, columns)].all() and mask.sum() == len(rows) * len(columns)
        inside = rows[0] > 0 and rows[-1] < HEIGHT - 1 and columns[0] > 0
        if inside and columns[-1] < WIDTH - 1:
            assert abs(len(columns) - len(rows) * WIDTH / HEIGHT) <= 2.5  # rounding of both sides
        else:
            clipped += 1
    assert 50 < clipped < COUNT


def test_cutmix_shares_are_those_of_beta_after_clipping():
    _, batch = mixed(cutmix=1.0)
    rng = np.random.default_rng(0)
    side, centre = np.sqrt(1 - rng.uniform(size=10**5)), rng.uniform(size=(2, 10**5))
    low, high = np.clip(centre - side / 2, 0, 1), np.clip(centre + side / 2, 0, 1)
    expected = 1 - np.prod(high - low, 0)
    assert stats.ks_2samp(batch['mix'], expected).statistic < 0.08


def test_with_both_a_coin_flip_chooses_for_each_batch():
    kinds = []
    for number in range(20):
        images, _ = mixed(jax.random.key(number), mixup=0.2, cutmix=1.0)
        result = shares(images)
        kinds.append(bool(((result == 0) | (result == 1)).all()))
    assert 4 < sum(kinds) < 16


def test_without_mixing_the_batch_is_unchanged():
    images, batch = mixed()
    np.testing.assert_array_equal(images, IMAGES)
    assert set(batch) == {'image', 'label'}
