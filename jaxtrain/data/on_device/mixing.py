"""Examples mixed with one another on the device, images and labels: mixup and CutMix."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxtrain.data.on_device.augment import rectangles
from jaxtrain.errors import UserError

Batch = dict[str, jax.Array]
Mix = Callable[[jax.Array, jax.Array, Batch], tuple[jax.Array, Batch]]

# What a mixed batch holds besides its labels: those of the other example, under their names with
# this in front, and the share of its own, float32 [batch].
OTHER, SHARE = 'mix_', 'mix'

_STREAM = 2**31  # apart from the keys of the augmentations, which are numbered from 0


def make_mix(cfg) -> Mix:
    """`(key, float32 images, batch) -> (images, batch)`, as `config.data` says.

    Each example is mixed with the one before it in the batch. The batch comes back with the labels
    of that one (OTHER) and SHARE, or as it is if nothing is mixed.

    Raises:
      UserError: mixup or cutmix less than 0.
    """
    for name in ('mixup', 'cutmix'):
        if getattr(cfg, name) < 0:
            raise UserError(
                f'config.data.{name}={getattr(cfg, name)} must be 0 (off) or more, such as 0.2'
            )
    alphas = {mixup: cfg.mixup, cutmix: cfg.cutmix}
    chosen = [(kept, alpha) for kept, alpha in alphas.items() if alpha]
    if not chosen:
        return lambda key, images, batch: (images, batch)

    def mix(key: jax.Array, images: jax.Array, batch: Batch) -> tuple[jax.Array, Batch]:
        coin_key, *keys = jax.random.split(jax.random.fold_in(key, _STREAM), 3)
        pairs = zip(keys, chosen, strict=False)
        weights = [kept(key, images.shape, alpha) for key, (kept, alpha) in pairs]
        own, share = weights[0]
        if len(weights) == 2:
            coin = jax.random.bernoulli(coin_key)
            own, share = (jnp.where(coin, x, y) for x, y in zip(*weights, strict=True))
        images = own * images + (1 - own) * jnp.roll(images, 1, 0)
        others = {OTHER + name: jnp.roll(x, 1, 0) for name, x in batch.items() if name != 'image'}
        return images, {**batch, **others, SHARE: share}

    return mix


def mixed(of: Callable[[jax.Array], jax.Array], batch: Batch, name: str) -> jax.Array:
    """What `of` makes of the labels of a name, [batch, ...]; of both by their shares if mixed."""
    own = of(batch[name])
    if SHARE not in batch:
        return own
    share = batch[SHARE].reshape(-1, *[1] * (own.ndim - 1))
    return share * own + (1 - share) * of(batch[OTHER + name])


def mixup(key: jax.Array, shape: tuple[int, ...], alpha: float) -> tuple[jax.Array, jax.Array]:
    """Of each image as a whole: Zhang et al. 2017, https://arxiv.org/abs/1710.09412.

    Args:
      shape: of the images, [batch, height, width, channels].
      alpha: shares are drawn from Beta(alpha, alpha).

    Returns:
      The weight of each pixel of the image itself, float32 [batch, height, width, 1], and the share
      that it has in all, float32 [batch].
    """
    share = jax.random.beta(key, alpha, alpha, shape[:1])
    return jnp.broadcast_to(share[:, None, None, None], (*shape[:3], 1)), share


def cutmix(key: jax.Array, shape: tuple[int, ...], alpha: float) -> tuple[jax.Array, jax.Array]:
    """Of a rectangle of each image: Yun et al. 2019, https://arxiv.org/abs/1905.04899.

    It has the aspect of the image and its middle anywhere in it. What sticks out is lost, so the
    share is that of the pixels that are left.

    Args, returns: as of `mixup`.
    """
    share_key, middle_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha, shape[:1])
    sides = jnp.array(shape[1:3])
    half = jnp.sqrt(1 - share)[:, None] * sides / 2
    middle = jax.random.uniform(middle_key, half.shape) * sides
    own = 1.0 - rectangles(shape, middle - half, middle + half)
    return own, own.mean((1, 2, 3))
