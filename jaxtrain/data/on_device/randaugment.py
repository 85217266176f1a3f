"""RandAugment on whole batches: Cubuk et al. 2019, https://arxiv.org/abs/1909.13719.

Each layer applies one of 14 operations to each example. Computing all 14 and selecting one would be
wasteful on a device, so the operations are expressed as three kinds: an affine map that moves
pixels, a lookup in a table of 256 values, and a blend with a degenerate version of the image. Each
layer applies each kind once, as the identity where an operation of another kind was drawn.

The results are those of PIL's functions on integer levels, which the code of the paper and of
AutoAugment uses (https://arxiv.org/abs/1805.09501, table 6 has the ranges). Magnitude 0 leaves
images unchanged, except for autocontrast and equalize, which have no magnitude.
"""

import math

import jax
import jax.numpy as jnp

GEOMETRY = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate')
TABLES = ('autocontrast', 'equalize', 'solarize', 'posterize')
BLENDS = ('color', 'contrast', 'brightness', 'sharpness')
OPERATIONS = ('identity', *GEOMETRY, *TABLES, *BLENDS)

FILL = 128  # the value of pixels moved in from outside, in the code of both papers
SHEAR, TRANSLATE, DEGREES = 0.3, 150 / 331, 30.0  # maxima; translation as a share of the side
POSTERIZE, BLEND = 4, 0.9  # maxima: bits removed, and the change of a factor of 1

_FIXED = 16  # fractional bits of PIL's fixed-point coordinates


def randaugment(key: jax.Array, images: jax.Array, layers: int, magnitude: float) -> jax.Array:
    """Apply `layers` operations, drawn for each image, with a magnitude of 0 to 10.

    Signs (left or right, more or less) are drawn too. Images are float32 [batch, height, width,
    channels] with 1 or 3 channels, and the results are integer levels.
    """
    images = jnp.round(jnp.clip(images, 0, 255)).astype(jnp.int32)
    for layer in range(layers):
        choice_key, sign_key = jax.random.split(jax.random.fold_in(key, layer))
        choices = jax.random.randint(choice_key, (len(images),), 0, len(OPERATIONS))
        signs = jax.random.bernoulli(sign_key, shape=(len(images),)).astype(jnp.int32)
        images = operate(images, choices, signs, magnitude)
    return images.astype(jnp.float32)


def operate(images: jax.Array, choices: jax.Array, signs: jax.Array, magnitude: float) -> jax.Array:
    """Apply one layer.

    Args:
      images: int32 [batch, height, width, channels], 0 to 255.
      choices: int32 [batch], indices into OPERATIONS.
      signs: int32 [batch], 0 for negative (to the left, less, ...), 1 for positive.
      magnitude: 0 to 10.
    """
    height, width = images.shape[1:3]
    # Both signs are computed in advance, in double precision as in PIL.
    matrices = [
        [_matrix(name, sign * magnitude / 10, height, width) for sign in (-1, 1)]
        for name in OPERATIONS
    ]
    factors = [
        [1 + (sign * BLEND * magnitude / 10 if name in BLENDS else 0) for sign in (-1, 1)]
        for name in OPERATIONS
    ]
    images = jax.vmap(_move)(images, jnp.array(matrices, jnp.int32)[choices, signs])
    images = jax.vmap(lambda x, choice: _look_up(x, choice, magnitude / 10))(images, choices)
    return jax.vmap(_blend)(images, choices, jnp.array(factors, jnp.float32)[choices, signs])


def _matrix(name: str, level: float, height: int, width: int) -> list[int]:
    """Return an operation's affine map for a level of -1 to 1, in PIL's fixed-point numbers.

    The result is `a, b, c, d, e, f`: pixel (x, y) is taken from column `a x + b y + c` and row
    `d x + e y + f`, in units of 2**-16.
    """
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if name == 'shear_x':
        b = SHEAR * level
    elif name == 'shear_y':
        d = SHEAR * level
    elif name == 'translate_x':
        c = round(TRANSLATE * level * width)
    elif name == 'translate_y':
        f = round(TRANSLATE * level * height)
    elif name == 'rotate':  # about the centre, counter-clockwise, as Image.rotate does
        turn = -math.radians(DEGREES * level)
        a, b, d, e = math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)
        c = width / 2 - a * width / 2 - b * height / 2
        f = height / 2 - d * width / 2 - e * height / 2
    # The centre of a pixel is half a pixel from its corner.
    c, f = c + (a + b) / 2, f + (d + e) / 2
    return [math.floor(x * 2**_FIXED + 0.5) for x in (a, b, c, d, e, f)]


def _move(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Apply an affine map with nearest-neighbour sampling, as Image.transform does."""
    height, width, _ = image.shape
    a, b, c, d, e, f = matrix
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    column, row = (a * x + b * y + c) >> _FIXED, (d * x + e * y + f) >> _FIXED
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return jnp.where(inside[..., None], image[row, column], FILL)


def _look_up(image: jax.Array, choice: jax.Array, level: float) -> jax.Array:
    """Apply the table of the chosen operation, which is the identity unless it is in TABLES."""
    values = jnp.arange(256)
    planes = image.reshape(-1, image.shape[-1]).T
    counts = jax.vmap(lambda plane: jnp.zeros(256, jnp.int32).at[plane].add(1))(planes)
    identity = jnp.broadcast_to(values, counts.shape)
    fixed = {  # the same table for every image
        'solarize': jnp.where(values < 256 * (1 - level), values, 255 - values),
        'posterize': values >> round(POSTERIZE * level) << round(POSTERIZE * level),
    }
    tables = [identity] * len(OPERATIONS)
    for name, table in fixed.items():
        tables[OPERATIONS.index(name)] = jnp.broadcast_to(table, identity.shape)
    tables[OPERATIONS.index('autocontrast')] = jax.vmap(_autocontrast_table)(counts)
    tables[OPERATIONS.index('equalize')] = jax.vmap(_equalize_table)(counts)
    table = jnp.stack(tables)[choice]
    return jax.vmap(lambda table, plane: table[plane])(table, planes).T.reshape(image.shape)


def _autocontrast_table(counts: jax.Array) -> jax.Array:
    """Return the table of ImageOps.autocontrast, which stretches a channel to 0..255."""
    values = jnp.arange(256)
    low, high = jnp.argmax(counts > 0), 255 - jnp.argmax(counts[::-1] > 0)
    table = jnp.clip((values - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, table, values)


def _equalize_table(counts: jax.Array) -> jax.Array:
    """Return the table of ImageOps.equalize, which equalizes the histogram of a channel."""
    values = jnp.arange(256)
    highest = 255 - jnp.argmax(counts[::-1] > 0)
    step = (counts.sum() - counts[highest]) // 255
    below = jnp.cumsum(counts) - counts
    table = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, table, values)


def _blend(image: jax.Array, choice: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend an image with its degenerate version (factor 0), as ImageEnhance does."""
    grey = _grey(image)
    mean = jnp.round(grey.astype(jnp.float32).mean()).astype(jnp.int32)
    degenerate = {
        'color': jnp.broadcast_to(grey, image.shape),
        'contrast': jnp.full_like(image, mean),
        'brightness': jnp.zeros_like(image),
        'sharpness': _smooth(image),
    }
    other = image
    for name, version in degenerate.items():
        other = jnp.where(choice == OPERATIONS.index(name), version, other)
    return jnp.clip(other + factor * (image - other), 0, 255).astype(jnp.int32)


def _grey(image: jax.Array) -> jax.Array:
    """Return the rounded ITU-R 601-2 luma, [height, width, 1], as Image.convert('L') does."""
    if image.shape[-1] != 3:
        return image[..., :1]
    weights = jnp.array([19595, 38470, 7471])
    return (image * weights).sum(-1, keepdims=True) + 2**15 >> 16


def _smooth(image: jax.Array) -> jax.Array:
    """Apply ImageFilter.SMOOTH: 3x3 means with a centre weight of 5; edge pixels are unchanged."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    around = sum(image[y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3))
    inner = (2 * (around + 4 * image[1:-1, 1:-1]) + 13) // 26
    return image.at[1:-1, 1:-1].set(inner)
