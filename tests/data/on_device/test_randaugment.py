"""Tests of RandAugment against PIL, on crops of scikit-learn's sample images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from jaxtrain.data.on_device.randaugment import OPERATIONS, operate, randaugment

PHOTOS = [x[100:190, 200:307] for x in load_sample_images().images]
# Images with a narrow range of values, to be stretched, and with a single value in one channel.
DIM = (PHOTOS[0] // 3 + 40).astype(np.uint8)
FLAT = np.where(np.arange(3) == 1, 77, PHOTOS[1]).astype(np.uint8)
IMAGES = np.stack([*PHOTOS, DIM, FLAT])
HEIGHT, WIDTH = IMAGES.shape[1:3]
SIDE = 150 / 331  # the maximum translation as a share of the side
WITHOUT_SIGN = ('identity', 'autocontrast', 'equalize', 'solarize', 'posterize')
OPERATE = jax.jit(operate, static_argnums=3)
RANDAUGMENT = jax.jit(randaugment, static_argnums=(2, 3))
KEY = jax.random.key(0)


def by_pil(pixels: np.ndarray, name: str, level: float) -> np.ndarray:
    """Apply an operation at a level of -1 to 1 with PIL."""
    image = Image.fromarray(pixels)
    grey = 128 if image.mode == 'L' else (128,) * 3

    def affine(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=grey)

    def enhance(kind) -> Image.Image:
        return kind(image).enhance(1 + 0.9 * level)

    known = {
        'identity': lambda: image,
        'shear_x': lambda: affine(1, 0.3 * level, 0, 0, 1, 0),
        'shear_y': lambda: affine(1, 0, 0, 0.3 * level, 1, 0),
        'translate_x': lambda: affine(1, 0, round(SIDE * level * WIDTH), 0, 1, 0),
        'translate_y': lambda: affine(1, 0, 0, 0, 1, round(SIDE * level * HEIGHT)),
        'rotate': lambda: image.rotate(30 * level, fillcolor=grey),
        'autocontrast': lambda: ImageOps.autocontrast(image),
        'equalize': lambda: ImageOps.equalize(image),
        'solarize': lambda: ImageOps.solarize(image, 256 * (1 - abs(level))),
        'posterize': lambda: ImageOps.posterize(image, 8 - round(4 * abs(level))),
        'color': lambda: enhance(ImageEnhance.Color),
        'contrast': lambda: enhance(ImageEnhance.Contrast),
        'brightness': lambda: enhance(ImageEnhance.Brightness),
        'sharpness': lambda: enhance(ImageEnhance.Sharpness),
    }
    return np.asarray(known[name]())


@pytest.mark.parametrize('magnitude', [3.0, 10.0])
@pytest.mark.parametrize('grey', [False, True])
def test_operations_are_those_of_pil(magnitude, grey):
    """All operations run in one batch, with both signs, on images of one and of three channels."""
    images = IMAGES[..., 0] if grey else IMAGES
    cases = [(x, name, sign) for x in images for name in OPERATIONS for sign in (0, 1)]
    batch = jnp.asarray(np.stack([x for x, _, _ in cases]), jnp.int32)
    choices = jnp.array([OPERATIONS.index(name) for _, name, _ in cases])
    signs = jnp.array([sign for _, _, sign in cases])
    results = OPERATE(batch[..., None] if grey else batch, choices, signs, magnitude)
    for (x, name, sign), out in zip(cases, np.asarray(results), strict=True):
        expected = by_pil(x, name, (2 * sign - 1) * magnitude / 10).astype(int)
        difference = np.abs(out.reshape(expected.shape) - expected)
        assert difference.max() <= 1, (name, sign)
        assert (difference > 0).mean() < 0.01, (name, sign)


SMALL = np.random.default_rng(0).integers(30, 200, (1, 22, 25, 3))


def everything(images: np.ndarray, magnitude: float) -> dict[bytes, str]:
    """Return a dict from each result of an operation to the operation and its sign."""
    cases = [(x, k, sign) for x in images for k in range(len(OPERATIONS)) for sign in (0, 1)]
    batch, choices, signs = map(jnp.array, zip(*cases, strict=True))
    results = np.asarray(OPERATE(batch, choices, signs, magnitude))
    names = [f'{OPERATIONS[k]} {sign}' for _, k, sign in cases]
    return {out.tobytes(): name for out, name in zip(results, names, strict=True)}


def test_operations_and_signs_are_drawn_uniformly():
    image, count = SMALL, 1400
    known = everything(image, 6.0)
    results = RANDAUGMENT(KEY, np.repeat(image, count, 0), 1, 6.0).astype(jnp.int32)
    names = [known[out.tobytes()] for out in np.asarray(results)]
    frequencies = {name: names.count(name) / count for name in known.values()}
    # The 5 geometric and 4 blending operations have two signs; the other 5 have none.
    assert len(frequencies) == 2 * 9 + 5
    for name, share in frequencies.items():
        expected = 1 / 14 if name.split()[0] in WITHOUT_SIGN else 1 / 28
        assert abs(share - expected) < 4 * np.sqrt(expected / count), name


def test_layers_are_applied_in_sequence():
    """Each result of two layers is that of some operation applied to that of another."""
    once = np.stack([np.frombuffer(x, np.int32).reshape(SMALL[0].shape)
                     for x in everything(SMALL, 6.0)])  # fmt: skip
    twice = everything(once, 6.0)
    results = RANDAUGMENT(KEY, np.repeat(SMALL, 200, 0), 2, 6.0).astype(jnp.int32)
    results = {out.tobytes() for out in np.asarray(results)}
    assert results <= set(twice)
    assert len(results - set(everything(SMALL, 6.0))) > 100  # few results need only one layer


def test_magnitude_0_is_the_identity_except_for_autocontrast_and_equalize():
    known = everything(SMALL, 0.0)
    assert known[SMALL[0].astype(np.int32).tobytes()] and len(known) == 3


def test_results_are_integer_levels():
    images = np.random.default_rng(1).uniform(-20, 280, (30, 8, 8, 1)).astype(np.float32)
    out = RANDAUGMENT(KEY, images, 2, 10.0)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, np.clip(np.rint(out), 0, 255))
    unchanged = RANDAUGMENT(KEY, images, 0, 10.0)
    np.testing.assert_array_equal(unchanged, np.rint(np.clip(images, 0, 255)))
