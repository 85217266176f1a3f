"""Tests of augmentations and normalisation against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxtrain.config import Config, base
from jaxtrain.data.on_device.augment import (
    affine,
    erase,
    flip,
    make_augment,
    make_normalise,
    noise,
    rectangles,
    shift,
)
from jaxtrain.data.on_device.randaugment import randaugment
from jaxtrain.errors import UserError
from jaxtrain.weights.bundle import resolve

KEY = jax.random.key(7)
IMAGES = np.random.default_rng(0).uniform(0, 255, (32, 6, 5, 2)).astype(np.float32)
flip, noise, shift, erase, affine, randaugment = (
    jax.jit(function, static_argnums=range(2, takes))
    for function, takes in (
        (flip, 2), (noise, 3), (shift, 3), (erase, 3), (affine, 4), (randaugment, 4)
    )
)  # fmt: skip


@pytest.fixture(autouse=True, scope='module')
def without_optimisation():
    """These programs run for less time than it takes to optimise them."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def data(**changes):
    changed = Config(base().to_dict()).replace(**{f'data__{k}': v for k, v in changes.items()})
    return resolve(changed, None).data


def fault(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def test_flip_mirrors_half_of_the_images():
    images = np.tile(IMAGES, (16, 1, 1, 1))
    out = np.asarray(flip(KEY, images))
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    kept = (out == images).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert abs(mirrored.mean() - 0.5) < 0.1


def test_shift_is_a_crop_of_the_edge_padded_image():
    out = np.asarray(shift(KEY, IMAGES, 2))
    seen = set()
    for image, moved in zip(IMAGES, out, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode='edge')
        matches = [
            (r, c)
            for r in range(5)
            for c in range(5)
            if (padded[r : r + 6, c : c + 5] == moved).all()
        ]
        assert len(matches) == 1
        seen |= set(matches)
    rows, columns = zip(*seen, strict=True)
    assert set(rows) == set(columns) == set(range(5))  # up to 2 in each direction, inclusive


def test_shift_draws_rows_and_columns_independently():
    out = np.asarray(shift(KEY, np.tile(IMAGES[:1], (200, 1, 1, 1)), 1))
    assert len({image.tobytes() for image in out}) == 9


@pytest.mark.parametrize(
    ('function', 'arguments'), [(shift, (0,)), (affine, (0.0, 0.0)), (noise, (0.0,))]
)
def test_zero_is_the_identity(function, arguments):
    np.testing.assert_allclose(function(KEY, IMAGES, *arguments), IMAGES, atol=1e-2)


def test_affine_rotates_by_up_to_its_degrees():
    """The angle of a line through the centre is computed from its second moments."""
    size, most = 41, 30.0
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    line = 255 * np.exp(-((rows / 1.5) ** 2) - (columns / 9) ** 2)
    images = np.tile(line[None, ..., None], (64, 1, 1, 1)).astype(np.float32)
    out = np.asarray(affine(KEY, images, most, 0.0))[..., 0]
    angles = 0.5 * np.arctan2(
        2 * (out * rows * columns).sum((1, 2)),
        (out * columns**2).sum((1, 2)) - (out * rows**2).sum((1, 2)),
    )
    angles = np.rad2deg(angles)
    assert np.abs(angles).max() < most + 0.5
    assert angles.max() > 0.8 * most and angles.min() < -0.8 * most
    assert abs(angles.mean()) < most / 4


def test_affine_zooms_by_up_to_its_factor():
    """The area of a disc is proportional to the square of the zoom, which is symmetric."""
    size, scale = 41, 0.5
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    disc = 255 * np.exp(-(rows**2 + columns**2) / 2 / 4**2)
    images = np.tile(disc[None, ..., None], (64, 1, 1, 1)).astype(np.float32)
    out = np.asarray(affine(KEY, images, 0.0, scale))[..., 0]
    zoom = np.sqrt(out.sum((1, 2)) / disc.sum())
    assert zoom.max() < 1.5 + 0.02 and zoom.min() > 1 / 1.5 - 0.02
    assert zoom.max() > 1.4 and zoom.min() < 1 / 1.4
    assert abs(np.log(zoom).mean()) < 0.1


def test_affine_against_scipy():
    """Some rotation and zoom within the limits reproduces each image."""
    rng = np.random.default_rng(1)
    image = ndimage.gaussian_filter(rng.uniform(0, 255, (12, 10)), 1).astype(np.float32)
    out = np.asarray(affine(KEY, np.tile(image[None, ..., None], (3, 1, 1, 1)), 20.0, 0.2))
    rows, columns = np.meshgrid(np.arange(12) - 5.5, np.arange(10) - 4.5, indexing='ij')

    def error(rotated, degrees, zoom):
        c, s = np.cos(np.deg2rad(degrees)) / zoom, np.sin(np.deg2rad(degrees)) / zoom
        places = [c * rows - s * columns + 5.5, s * rows + c * columns + 4.5]
        return np.abs(
            ndimage.map_coordinates(image, places, order=1, mode='nearest') - rotated
        ).max()

    for rotated in out[..., 0]:
        grid = [(error(rotated, d, z), d, z) for d in np.arange(-20, 20.1, 1)
                for z in np.exp(np.linspace(-1, 1, 21) * np.log(1.2))]  # fmt: skip
        _, degrees, zoom = min(grid)
        fine = [error(rotated, degrees + d, zoom * z) for d in np.linspace(-1, 1, 41)
                for z in np.linspace(0.98, 1.02, 21)]  # fmt: skip
        assert min(fine) < 0.4 < np.ptp(image) / 100


def test_noise_has_its_level():
    images = np.full((64, 8, 8, 1), 100, np.float32)
    added = np.asarray(noise(KEY, images, 12.0)) - images
    assert added.std() == pytest.approx(12, rel=0.05)
    assert abs(added.mean()) < 1
    assert abs(np.corrcoef(added[:32].ravel(), added[32:].ravel())[0, 1]) < 0.1


def test_erase_fills_rectangles_with_noise():
    height, width = 60, 40
    images = np.full((400, height, width, 1), -1, np.float32)
    erased = np.asarray(erase(KEY, images, 0.7))
    areas, aspects, centres = [], [], []
    for mask in erased[..., 0] != -1:
        if not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[np.ix_(rows, columns)].all()  # a filled rectangle
        assert len(rows) == np.ptp(rows) + 1 and len(columns) == np.ptp(columns) + 1
        areas.append(mask.mean())
        aspects.append(len(rows) / len(columns))
        centres.append((rows.mean() / height, columns.mean() / width))
    assert abs(len(areas) / 400 - 0.7) < 0.1
    # Sides of 5 pixels or more are rounded by up to half a pixel.
    assert 0.015 < min(areas) < 0.05 and 0.3 < max(areas) < 0.42
    assert 0.25 < min(aspects) < 0.5 and 2 < max(aspects) < 4
    assert (np.ptp(centres, axis=0) > 0.6).all()
    np.testing.assert_allclose(np.mean(centres, axis=0), 0.5, atol=0.05)
    pixels = erased[erased != -1]
    assert pixels.min() < 5 and pixels.max() > 250 and pixels.mean() == pytest.approx(127.5, abs=3)


@pytest.mark.parametrize('probability, expected', [(0.0, 0.0), (1.0, 1.0)])
def test_erase_with_probability_0_and_1(probability, expected):
    images = np.tile(IMAGES, (8, 5, 6, 1))
    changed = (np.asarray(erase(KEY, images, probability)) != images).any((1, 2, 3))
    assert changed.mean() == expected


def test_rectangles_are_clipped():
    low, high = jnp.array([[1.0, -3.0], [4.0, 3.0]]), jnp.array([[3.0, 2.0], [9.0, 9.0]])
    expected = np.zeros((2, 6, 5, 1), bool)
    expected[0, 1:3, :2] = expected[1, 4:, 3:] = True
    np.testing.assert_array_equal(rectangles((2, 6, 5, 3), low, high), expected)


@pytest.mark.parametrize(
    ('function', 'arguments'),
    [
        (flip, ()), (shift, (2,)), (affine, (30.0, 0.3)), (noise, (5.0,)), (erase, (0.8,)),
        (randaugment, (2, 9.0)),
    ],
)  # fmt: skip
def test_examples_are_independent_of_each_other(function, arguments):
    """The augmentation of an example depends on its position and not on its neighbours."""
    out = np.asarray(function(KEY, IMAGES, *arguments))
    others = IMAGES.copy()
    others[1:] = 0
    np.testing.assert_array_equal(np.asarray(function(KEY, others, *arguments))[0], out[0])
    same = np.tile(IMAGES[:1], (32, 1, 1, 1))
    assert len({image.tobytes() for image in np.asarray(function(KEY, same, *arguments))}) > 1
    again = np.asarray(function(jax.random.key(8), IMAGES, *arguments))
    assert (again != out).any()


def test_augmentations_are_applied_in_order_with_a_key_each():
    chain = jax.jit(make_augment(data(augment=(('flip',), ('shift', 1), ('flip',)))))
    images = IMAGES.astype(np.uint8)
    expected = flip(jax.random.fold_in(KEY, 0), images.astype(np.float32))
    expected = shift(jax.random.fold_in(KEY, 1), expected, 1)
    expected = flip(jax.random.fold_in(KEY, 2), expected)
    out = chain(KEY, images)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, expected)


def test_without_augmentation_images_are_only_cast():
    out = make_augment(data())(KEY, jnp.asarray(IMAGES.astype(np.uint8)))
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, IMAGES.astype(np.uint8))


@pytest.mark.parametrize(
    ('entry', 'words'),
    [
        (('flipp',), "'flipp' is not known (did you mean 'flip'?); choose from flip, shift, aff"),
        (('shift',), "('shift') should be ('shift', pixels)"),
        (('shift', 1, 2), "('shift', 1, 2) should be ('shift', pixels)"),
        (('flip', 1), "('flip', 1) should be ('flip')"),
        (('affine', 10), "('affine', 10) should be ('affine', degrees, scale)"),
        (('randaugment', 2), "should be ('randaugment', layers, magnitude)"),
        (('randaugment', 2, 11), "magnitude of 'randaugment' is 11, but must be at most 10"),
        (('randaugment', 2.0, 9), "layers of 'randaugment' is 2.0, but must be a int of 0 or"),
        (('erase', 1.5), "probability of 'erase' is 1.5, but must be at most 1"),
        ('flip', "write 'flip' as a tuple, such as ('shift', 2)"),
        ((), "write () as a tuple, such as ('shift', 2)"),
    ],
)
def test_invalid_entries_are_refused(entry, words):
    message = fault(make_augment, data(augment=(entry,)))
    assert message.startswith('config.data.augment: ')
    assert words in message


@pytest.mark.parametrize('entry', [('shift', 'far'), ('shift', 1.5), ('shift', -1)])
def test_invalid_arguments_are_refused(entry):
    assert 'config.data.augment' in fault(make_augment, data(augment=(entry,)))


def test_normalise_with_a_scale_and_in_bgr():
    """Keras calls this 'caffe': BGR minus a mean, without division."""
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3)).astype(np.uint8)
    mean = (103.939, 116.779, 123.68)
    settings = data(scale=1.0, channel_order='bgr', mean=mean, std=(1.0,))
    out = make_normalise(settings, 3)(jnp.asarray(images))
    expected = images[..., ::-1].astype(np.float64) - mean
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert out.dtype == jnp.float32


@pytest.mark.parametrize(
    'changes, channels, words',
    [
        ({'channel_order': 'bgr'}, 1, 'these have 1'),
        ({'channel_order': 'brg'}, 3, "config.data.channel_order='brg'"),
    ],
)
def test_invalid_channel_order_is_refused(changes, channels, words):
    assert words in fault(make_normalise, data(**changes), channels)


def test_normalise_against_numpy():
    images = IMAGES.astype(np.uint8)
    for mean, std in (((0.5,), (0.25,)), ((0.1, 0.9), (0.5, 2.0)), ((0.5,), (1.0, 2.0))):
        out = make_normalise(data(mean=mean, std=std), 2)(jnp.asarray(images))
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, (images / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'mean': (0.1, 0.2)}, 'config.data.mean=(0.1, 0.2) must have one value or one for each'),
        ({'std': (0.5, 0.5)}, 'config.data.std=(0.5, 0.5) must have one value'),
        ({'std': (1.0, 0.0, 1.0)}, 'config.data.std=(1.0, 0.0, 1.0) must not be 0'),
    ],
)
def test_invalid_mean_or_std_is_refused(changes, words):
    assert words in fault(make_normalise, data(**changes), 3)
