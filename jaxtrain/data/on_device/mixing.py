"""Mixup and CutMix: mixing of the images and labels of a batch on the device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxtrain.data.on_device.augment import rectangles
from jaxtrain.errors import UserError

Batch = dict[str, jax.Array]
Mix = Callable[[jax.Array, jax.Array, Batch], tuple[jax.Array, Batch]]

# Entries of a mixed batch besides its labels: the labels of the other example, whose names have the
# prefix OTHER, and the weight of the example's own labels, float32 [batch].
OTHER, SHARE = 'mix_', 'mix'

_STREAM = 2**31  # distinct from the keys of the augmentations, which are numbered from 0


def make_mix(cfg) -> Mix:
    """Return `(key, float32 images, batch) -> (images, batch)`, with the mixing of `config.data`.

    Each example is mixed with the previous one in the batch, whose labels (OTHER) are added to the
    batch, as is SHARE. Without mixing, the batch is unchanged.

    Raises:
      UserError: If mixup or cutmix is less than 0.
    """
    for name in ('mixup', 'cutmix'):
        if getattr(cfg, name) < 0:
            raise UserError(
                f'config.data.{name}={getattr(cfg, name)} must be 0 (off) or more, such as 0.2'
            )
    alphas = {mixup: cfg.mixup, cutmix: cfg.cutmix}
    chosen = [(method, alpha) for method, alpha in alphas.items() if alpha]
    if not chosen:
        return lambda key, images, batch: (images, batch)

    def mix(key: jax.Array, images: jax.Array, batch: Batch) -> tuple[jax.Array, Batch]:
        coin_key, *keys = jax.random.split(jax.random.fold_in(key, _STREAM), 3)
        pairs = zip(keys, chosen, strict=False)
        options = [method(key, images.shape, alpha) for key, (method, alpha) in pairs]
        weight, share = options[0]
        if len(options) == 2:
            coin = jax.random.bernoulli(coin_key)
            weight, share = (jnp.where(coin, x, y) for x, y in zip(*options, strict=True))
        images = weight * images + (1 - weight) * jnp.roll(images, 1, 0)
        others = {OTHER + name: jnp.roll(x, 1, 0) for name, x in batch.items() if name != 'image'}
        return images, {**batch, **others, SHARE: share}

    return mix


def mixed(function: Callable[[jax.Array], jax.Array], batch: Batch, name: str) -> jax.Array:
    """Return `function` of the labels called `name`, averaged over both labels if they are mixed.

    Args:
      function: labels [batch] -> values [batch, ...].
      batch: a batch, mixed or not.
      name: the name of the labels.
    """
    values = function(batch[name])
    if SHARE not in batch:
        return values
    share = batch[SHARE].reshape(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * function(batch[OTHER + name])


def mixup(key: jax.Array, shape: tuple[int, ...], alpha: float) -> tuple[jax.Array, jax.Array]:
    """Return weights to blend whole images: Zhang et al. 2017, https://arxiv.org/abs/1710.09412.

    Args:
      key: the key of the random numbers.
      shape: the shape of the images, [batch, height, width, channels].
      alpha: shares are drawn from Beta(alpha, alpha).

    Returns:
      The weight of each pixel of the first image, float32 [batch, height, width, 1], and its share
      of the whole mixture, float32 [batch].
    """
    share = jax.random.beta(key, alpha, alpha, shape[:1])
    return jnp.broadcast_to(share[:, None, None, None], (*shape[:3], 1)), share


def cutmix(key: jax.Array, shape: tuple[int, ...], alpha: float) -> tuple[jax.Array, jax.Array]:
    """Return weights that replace a rectangle: Yun et al. 2019, https://arxiv.org/abs/1905.04899.

    The rectangle has the aspect of the image, and its centre lies anywhere in the image. The part
    that extends beyond the image is dropped, so the share is computed from the remaining pixels.

    Args, Returns: As in `mixup`.
    """
    share_key, centre_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha, shape[:1])
    sides = jnp.array(shape[1:3])
    half = jnp.sqrt(1 - share)[:, None] * sides / 2
    centre = jax.random.uniform(centre_key, half.shape) * sides
    weight = 1.0 - rectangles(shape, centre - half, centre + half)
    return weight, weight.mean((1, 2, 3))
