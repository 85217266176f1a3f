"""RandAugment: each operation against PIL's own, on crops of scikit-learn's sample images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from jaxtrain.data.on_device.randaugment import OPERATIONS, operate, randaugment

PHOTOS = [x[100:190, 200:307] for x in load_sample_images().images]
# Little of the range of values, so that stretching it shows; and a single value in one channel.
DIM = (PHOTOS[0] // 3 + 40).astype(np.uint8)
FLAT = np.where(np.arange(3) == 1, 77, PHOTOS[1]).astype(np.uint8)
IMAGES = np.stack([*PHOTOS, DIM, FLAT])
HEIGHT, WIDTH = IMAGES.shape[1:3]
SIDE = 150 / 331  # the greatest translation, as a share
WITHOUT_SIGN = ('identity', 'autocontrast', 'equalize', 'solarize', 'posterize')
OPERATE = jax.jit(operate, static_argnums=3)
RANDAUGMENT = jax.jit(randaugment, static_argnums=(2, 3))
KEY = jax.random.key(0)


def by_pil(pixels: np.ndarray, name: str, level: float) -> np.ndarray:
    """The operation at a level of -1 to 1."""
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
    """All of them in one batch, both signs, images of one channel and of three."""
    images = IMAGES[..., 0] if grey else IMAGES
    cases = [(x, name, sign) for x in images for name in OPERATIONS for sign in (0, 1)]
    batch = jnp.asarray(np.stack([x for x, _, _ in cases]), jnp.int32)
    choices = jnp.array([OPERATIONS.index(name) for _, name, _ in cases])
    signs = jnp.array([sign for _, _, sign in cases])
    found = OPERATE(batch[..., None] if grey else batch, choices, signs, magnitude)
    for (x, name, sign), out in zip(cases, np.asarray(found), strict=True):
        expected = by_pil(x, name, (2 * sign - 1) * magnitude / 10).astype(int)
        apart = np.abs(out.reshape(expected.shape) - expected)
        assert apart.max() <= 1, (name, sign)
        assert (apart > 0).mean() < 0.01, (name, sign)


SMALL = np.random.default_rng(0).integers(30, 200, (1, 22, 25, 3))


def everything(images: np.ndarray, magnitude: float) -> dict[bytes, str]:
    """What the operations make of images -> which one it was, with its sign."""
    cases = [(x, k, sign) for x in images for k in range(len(OPERATIONS)) for sign in (0, 1)]
    batch, choices, signs = map(jnp.array, zip(*cases, strict=True))
    found = np.asarray(OPERATE(batch, choices, signs, magnitude))
    names = [f'{OPERATIONS[k]} {sign}' for _, k, sign in cases]
    return {out.tobytes(): name for out, name in zip(found, names, strict=True)}


def test_each_operation_and_sign_is_drawn_as_often():
    image, count = SMALL, 1400
    known = everything(image, 6.0)
    found = RANDAUGMENT(KEY, np.repeat(image, count, 0), 1, 6.0).astype(jnp.int32)
    names = [known[out.tobytes()] for out in np.asarray(found)]
    often = {name: names.count(name) / count for name in known.values()}
    # Both signs of the 5 geometric and the 4 blending ones; the other 5 have none.
    assert len(often) == 2 * 9 + 5
    for name, share in often.items():
        expected = 1 / 14 if name.split()[0] in WITHOUT_SIGN else 1 / 28
        assert abs(share - expected) < 4 * np.sqrt(expected / count), name


def test_layers_follow_each_other():
    """Of two layers each result is what some operation makes of what some operation makes."""
    once = np.stack([np.frombuffer(x, np.int32).reshape(SMALL[0].shape)
                     for x in everything(SMALL, 6.0)])  # fmt: skip
    twice = everything(once, 6.0)
    found = RANDAUGMENT(KEY, np.repeat(SMALL, 200, 0), 2, 6.0).astype(jnp.int32)
    found = {out.tobytes() for out in np.asarray(found)}
    assert found <= set(twice)
    assert len(found - set(everything(SMALL, 6.0))) > 100  # hardly any is one layer's work


def test_magnitude_0_leaves_all_but_contrast_to_autocontrast_and_equalize():
    known = everything(SMALL, 0.0)
    assert known[SMALL[0].astype(np.int32).tobytes()] and len(known) == 3


def test_comes_back_in_whole_grey_levels():
    images = np.random.default_rng(1).uniform(-20, 280, (30, 8, 8, 1)).astype(np.float32)
    out = RANDAUGMENT(KEY, images, 2, 10.0)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, np.clip(np.rint(out), 0, 255))
    unchanged = RANDAUGMENT(KEY, images, 0, 10.0)
    np.testing.assert_array_equal(unchanged, np.rint(np.clip(images, 0, 255)))
