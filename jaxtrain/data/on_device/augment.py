"""Normalisation and augmentation of batches of images, inside the jitted step.

An augmentation is `f(key, images, *arguments) -> images` over float32 [batch, height, width,
channels] in 0..255. Random numbers are drawn per example, by its position in the global batch, so
they do not depend on the number of devices that share the batch.
"""

import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.on_device.randaugment import randaugment
from jaxtrain.errors import UserError, nearest


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror half of the images left to right."""
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def shift(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
    """Shift each image by up to `pixels` in each direction; edge pixels fill the gaps."""
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode='edge')

    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, offsets)


def affine(key: jax.Array, images: jax.Array, degrees: float, scale: float) -> jax.Array:
    """Rotate each image by up to `degrees` and zoom in or out by up to a factor `1 + scale`."""
    _, height, width, channels = images.shape
    angle_key, zoom_key = jax.random.split(key)
    angle = jnp.deg2rad(
        jax.random.uniform(angle_key, (len(images),), minval=-degrees, maxval=degrees)
    )
    zoom = jnp.exp(jnp.log1p(scale) * jax.random.uniform(zoom_key, (len(images),), minval=-1.0))
    rows, columns = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing='ij'
    )

    def warp(image: jax.Array, angle: jax.Array, zoom: jax.Array) -> jax.Array:
        source_rows = (jnp.cos(angle) * rows - jnp.sin(angle) * columns) / zoom + (height - 1) / 2
        source_columns = (jnp.sin(angle) * rows + jnp.cos(angle) * columns) / zoom + (width - 1) / 2
        planes = [
            jax.scipy.ndimage.map_coordinates(
                image[..., c], [source_rows, source_columns], order=1, mode='nearest'
            )
            for c in range(channels)
        ]
        return jnp.stack(planes, -1)

    return jax.vmap(warp)(images, angle, zoom)


def noise(key: jax.Array, images: jax.Array, level: float) -> jax.Array:
    """Add normal noise with a standard deviation of `level` grey levels (of 255)."""
    return images + level * jax.random.normal(key, images.shape)


def erase(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Fill a rectangle of an image with random pixels, with this probability.

    This is random erasing, Zhong et al. 2017 (https://arxiv.org/abs/1708.04896), with its values: a
    share of 0.02 to 0.4 of the area, an aspect of 0.3 to 1 / 0.3. A rectangle that extends beyond
    the image is drawn again, up to TRIES times (one in three fits).
    """
    count, height, width = images.shape[:3]
    chosen_key, area_key, aspect_key, place_key, pixel_key = jax.random.split(key, 5)
    chosen = jax.random.bernoulli(chosen_key, probability, (count,))
    area = jax.random.uniform(area_key, (count, TRIES), minval=0.02, maxval=0.4) * height * width
    aspect = jax.random.uniform(aspect_key, (count, TRIES), minval=0.3, maxval=1 / 0.3)
    size = jnp.stack([jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)], -1)
    place = jax.random.uniform(place_key, size.shape) * jnp.array([height, width])
    fits = (place + size <= jnp.array([height, width])).all(-1)
    first = fits.argmax(1)[:, None, None]
    low, size = (jnp.take_along_axis(x, first, 1)[:, 0] for x in (place, size))
    erased = rectangles(images.shape, low, low + size) & (chosen & fits.any(1))[:, None, None, None]
    return jnp.where(erased, jax.random.uniform(pixel_key, images.shape, maxval=255.0), images)


def rectangles(shape: tuple[int, ...], low: jax.Array, high: jax.Array) -> jax.Array:
    """Return the masks, bool [batch, height, width, 1], of one rectangle in each image.

    Args:
      shape: the shape of the images, [batch, height, width, channels].
      low, high: [batch, 2]: the first row and column, and those after the last; they may lie
        outside the image.
    """
    low, high = jnp.round(low), jnp.round(high)
    rows, columns = (
        (jnp.arange(side) >= low[:, axis, None]) & (jnp.arange(side) < high[:, axis, None])
        for axis, side in enumerate(shape[1:3])
    )
    return (rows[:, :, None] & columns[:, None, :])[..., None]


AUGMENTATIONS = {f.__name__: f for f in (flip, shift, affine, noise, randaugment, erase)}
# The upper limits of arguments that have one.
GREATEST = {'probability': 1.0, 'magnitude': 10.0}
TRIES = 32


def make_augment(cfg) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return `(key, uint8 images) -> float32 images` in 0..255 for `config.data.augment`.

    Raises:
      UserError: If an augmentation is unknown or its arguments are invalid.
    """
    chain = [_checked(entry) for entry in cfg.augment]

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        images = images.astype(jnp.float32)
        for number, (function, arguments) in enumerate(chain):
            images = function(jax.random.fold_in(key, number), images, *arguments)
        return images

    return augment


def make_normalise(cfg, channels: int) -> Callable[[jax.Array], jax.Array]:
    """Return `images -> (images / scale - mean) / std` in float32, with the keys of `config.data`.

    With channel_order 'bgr' the channels are reversed first.

    Raises:
      UserError: If there is neither one value nor one per channel, a std is 0, or the order is
        unknown.
    """
    for name in ('mean', 'std'):
        if len(getattr(cfg, name)) not in (1, channels):
            raise UserError(
                f'config.data.{name}={getattr(cfg, name)} must have one value or one for each of '
                f'the {channels} channels of the images'
            )
    if not all(cfg.std):
        raise UserError(f'config.data.std={cfg.std} must not be 0')
    reverse = cfg.choose('channel_order', ('rgb', 'bgr')) == 'bgr'
    if reverse and channels != 3:
        raise UserError(
            f"config.data.channel_order='bgr' requires images of 3 channels; these have {channels}"
        )
    scale = np.float32(cfg.scale)
    mean, std = np.asarray(cfg.mean, np.float32), np.asarray(cfg.std, np.float32)

    def normalise(images: jax.Array) -> jax.Array:
        images = images.astype(jnp.float32)
        return ((images[..., ::-1] if reverse else images) / scale - mean) / std

    return normalise


def _checked(entry: tuple) -> tuple[Callable, tuple]:
    if not isinstance(entry, tuple | list) or not entry:
        raise UserError(f"config.data.augment: write {entry!r} as a tuple, such as ('shift', 2)")
    name, *arguments = entry
    if name not in AUGMENTATIONS:
        raise UserError(
            f'config.data.augment: {name!r} is not known{nearest(name, AUGMENTATIONS)}; '
            f'choose from {", ".join(AUGMENTATIONS)}'
        )
    function = AUGMENTATIONS[name]
    expected = list(inspect.signature(function).parameters)[2:]
    if len(arguments) != len(expected):
        given = f'({", ".join(map(repr, entry))})'
        raise UserError(
            f'config.data.augment: {given} should be ({", ".join([repr(name), *expected])})'
        )
    kinds = inspect.get_annotations(function)
    for word, value in zip(expected, arguments, strict=True):
        right = type(value) is int or (kinds[word] is float and type(value) is float)
        if not right or value < 0:
            raise UserError(
                f'config.data.augment: {word} of {name!r} is {value!r}, but must be a '
                f'{kinds[word].__name__} of 0 or more'
            )
        if value > GREATEST.get(word, math.inf):
            raise UserError(
                f'config.data.augment: {word} of {name!r} is {value!r}, but must be at most '
                f'{GREATEST[word]:g}'
            )
    return function, tuple(arguments)
