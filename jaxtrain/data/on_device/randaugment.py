"""RandAugment on whole batches: Cubuk et al. 2019, https://arxiv.org/abs/1909.13719.

Each layer does one of 14 things to each example. A device would compute all 14 for each and keep
one, so they are cast as three kinds, of which a layer does each once, as the identity where another
was drawn: pixels are moved by an affine map, looked up in a table of 256 values, and blended with a
dull version of the image.

The results are those of the functions of PIL, on whole grey levels, in which the paper's code and
AutoAugment's (https://arxiv.org/abs/1805.09501, table 6 for the ranges) are written. Magnitude 0
leaves images as they are, but for autocontrast and equalize, which have none.
"""

import math

import jax
import jax.numpy as jnp

GEOMETRY = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate')
TABLES = ('autocontrast', 'equalize', 'solarize', 'posterize')
BLENDS = ('color', 'contrast', 'brightness', 'sharpness')
OPERATIONS = ('identity', *GEOMETRY, *TABLES, *BLENDS)

FILL = 128  # what shows where pixels were moved away, in the code of both papers
SHEAR, TRANSLATE, DEGREES = 0.3, 150 / 331, 30.0  # greatest; translation as a share of the side
POSTERIZE, BLEND = 4, 0.9  # bits that go, and what is added to or taken from a factor of 1

_FIXED = 16  # binary places of PIL's coordinates


def randaugment(key: jax.Array, images: jax.Array, layers: int, magnitude: float) -> jax.Array:
    """Does `layers` of the operations, drawn for each image, as strong as `magnitude`, 0 to 10.

    Signs (left or right, more or less) are drawn too. Takes and returns float32 [batch, height,
    width, channels] of 1 or 3 channels; comes back in whole grey levels.
    """
    images = jnp.round(jnp.clip(images, 0, 255)).astype(jnp.int32)
    for layer in range(layers):
        choice_key, sign_key = jax.random.split(jax.random.fold_in(key, layer))
        choices = jax.random.randint(choice_key, (len(images),), 0, len(OPERATIONS))
        signs = jax.random.bernoulli(sign_key, shape=(len(images),)).astype(jnp.int32)
        images = operate(images, choices, signs, magnitude)
    return images.astype(jnp.float32)


def operate(images: jax.Array, choices: jax.Array, signs: jax.Array, magnitude: float) -> jax.Array:
    """One layer.

    Args:
      images: int32 [batch, height, width, channels], 0 to 255.
      choices: int32 [batch], places in OPERATIONS.
      signs: int32 [batch], 0 for less (or to the left, ...), 1 for more.
      magnitude: 0 to 10.
    """
    height, width = images.shape[1:3]
    # Both signs are worked out beforehand, in double precision as in PIL.
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
    """Where a pixel comes from, for a level of -1 to 1, as PIL's fixed-point numbers.

    Returns `a, b, c, d, e, f`: pixel (x, y) is taken from column `a x + b y + c` and row
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
    elif name == 'rotate':  # about the centre, counter-clockwise, as of Image.rotate
        turn = -math.radians(DEGREES * level)
        a, b, d, e = math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)
        c = width / 2 - a * width / 2 - b * height / 2
        f = height / 2 - d * width / 2 - e * height / 2
    # The middle of a pixel is half a pixel from its corner.
    c, f = c + (a + b) / 2, f + (d + e) / 2
    return [math.floor(x * 2**_FIXED + 0.5) for x in (a, b, c, d, e, f)]


def _move(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """The nearest pixel for each, as Image.transform gives it."""
    height, width, _ = image.shape
    a, b, c, d, e, f = matrix
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    column, row = (a * x + b * y + c) >> _FIXED, (d * x + e * y + f) >> _FIXED
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return jnp.where(inside[..., None], image[row, column], FILL)


def _look_up(image: jax.Array, choice: jax.Array, level: float) -> jax.Array:
    """Each value by the table of the operation that was chosen, of TABLES or none."""
    values = jnp.arange(256)
    planes = image.reshape(-1, image.shape[-1]).T
    counts = jax.vmap(lambda plane: jnp.zeros(256, jnp.int32).at[plane].add(1))(planes)
    plain = jnp.broadcast_to(values, counts.shape)
    same = {
        'solarize': jnp.where(values < 256 * (1 - level), values, 255 - values),
        'posterize': values >> round(POSTERIZE * level) << round(POSTERIZE * level),
    }
    tables = [plain] * len(OPERATIONS)
    for name, table in same.items():
        tables[OPERATIONS.index(name)] = jnp.broadcast_to(table, plain.shape)
    tables[OPERATIONS.index('autocontrast')] = jax.vmap(_stretched)(counts)
    tables[OPERATIONS.index('equalize')] = jax.vmap(_equalized)(counts)
    table = jnp.stack(tables)[choice]
    return jax.vmap(lambda table, plane: table[plane])(table, planes).T.reshape(image.shape)


def _stretched(counts: jax.Array) -> jax.Array:
    """Of ImageOps.autocontrast: the table that stretches the values of a channel to 0..255."""
    values = jnp.arange(256)
    low, high = jnp.argmax(counts > 0), 255 - jnp.argmax(counts[::-1] > 0)
    table = jnp.clip((values - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, table, values)


def _equalized(counts: jax.Array) -> jax.Array:
    """Of ImageOps.equalize: the table after which each value of a channel is as frequent."""
    values = jnp.arange(256)
    highest = 255 - jnp.argmax(counts[::-1] > 0)
    step = (counts.sum() - counts[highest]) // 255
    below = jnp.cumsum(counts) - counts
    table = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, table, values)


def _blend(image: jax.Array, choice: jax.Array, factor: jax.Array) -> jax.Array:
    """Of ImageEnhance: from the dull version of an image (0) to the image (1) and beyond."""
    grey = _grey(image)
    mean = jnp.round(grey.astype(jnp.float32).mean()).astype(jnp.int32)
    dull = {
        'color': jnp.broadcast_to(grey, image.shape),
        'contrast': jnp.full_like(image, mean),
        'brightness': jnp.zeros_like(image),
        'sharpness': _smooth(image),
    }
    other = image
    for name, version in dull.items():
        other = jnp.where(choice == OPERATIONS.index(name), version, other)
    return jnp.clip(other + factor * (image - other), 0, 255).astype(jnp.int32)


def _grey(image: jax.Array) -> jax.Array:
    """Luma of ITU-R 601-2, rounded, [height, width, 1], as Image.convert('L') has it."""
    if image.shape[-1] != 3:
        return image[..., :1]
    weights = jnp.array([19595, 38470, 7471])
    return (image * weights).sum(-1, keepdims=True) + 2**15 >> 16


def _smooth(image: jax.Array) -> jax.Array:
    """Of ImageFilter.SMOOTH: means over 3x3 pixels, the middle one five times, but at the edges."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    around = sum(image[y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3))
    inner = (2 * (around + 4 * image[1:-1, 1:-1]) + 13) // 26
    return image.at[1:-1, 1:-1].set(inner)
