"""Parts that transformers share: attention, with or without a cache, MLP and stochastic depth.

Kernels have an axis of heads: query, key and value are [width, heads, width / heads], and out is
[heads, width / heads, width].
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxtrain.models.parts.family import Axes

GELU = {
    'erf': functools.partial(nn.gelu, approximate=False),
    'tanh': functools.partial(nn.gelu, approximate=True),
}

# The dimension of each parameter that is sharded over the mesh axis `tensor`: heads and hidden
# units in a block, and tokens in the embedding.
BLOCK_AXES: Axes = (
    (r'(.*/)?(query|key|value)/kernel', 1),
    (r'(.*/)?(query|key|value)/bias', 0),
    (r'(.*/)?out/kernel', 0),
    (r'(.*/)?up/kernel', 1),
    (r'(.*/)?up/bias', 0),
    (r'(.*/)?down/kernel', 0),
)
TOKEN_AXES: Axes = ((r'(.*/)?tokens/embedding', 0),)


class Attention(nn.Module):
    """Multi-head self-attention, [batch, length, width] -> [batch, length, width].

    Attributes:
      heads: number of heads, which share the width.
      dropout: fraction of the attention weights that is zeroed in training.
      scaled: whether products of queries and keys are divided by the square root of a head's size.
      kernel_init, out_init: initialisers of the query, key and value kernels, and of the output
        kernel.
    """

    heads: int
    dropout: float = 0.0
    scaled: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    out_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        *,
        train: bool,
        causal: bool = False,
        cache: int = 0,
        start: jax.Array | None = None,
    ) -> jax.Array:
        """Attends over x, or over the whole cache if there is one.

        Args:
          x: float [batch, length, width].
          mask: bool, broadcast to [batch, heads, queries, keys]: True if a query attends to
            a key.
          train: whether dropout is active.
          causal: whether a position attends only to positions up to its own; replaces a mask.
          cache: number of positions whose keys and values are kept in the collection 'cache'
            (which must be mutable); 0 disables the cache. With a cache, the keys are those of the
            whole cache.
          start: int32 [batch], position in the cache of the first token in each row of x.

        Raises:
          ValueError: the number of heads does not divide the width.
        """
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f'a width of {width} cannot be shared by {self.heads} heads')
        split = (self.heads, width // self.heads)
        query, key, value = (
            nn.DenseGeneral(split, kernel_init=self.kernel_init, name=name)(x)
            for name in ('query', 'key', 'value')
        )
        if not self.scaled:
            query = query * split[1] ** 0.5
        if cache:
            assert start is not None  # where to write into the cache
            key = self._keep('keys', key, cache, start)
            value = self._keep('values', value, cache, start)
        rng = self.make_rng('dropout') if train and self.dropout else None
        x = _attend(query, key, value, mask, causal, self.dropout, rng)
        return nn.DenseGeneral(width, axis=(-2, -1), kernel_init=self.out_init, name='out')(x)

    def _keep(self, name: str, new: jax.Array, length: int, start: jax.Array) -> jax.Array:
        """Writes [batch, steps, heads, size] to the cache and returns [batch, length, ...]."""
        batch, _, *rest = new.shape
        kept = self.variable('cache', name, jnp.zeros, (batch, length, *rest), new.dtype)
        write = functools.partial(lax.dynamic_update_slice_in_dim, axis=0)
        kept.value = jax.vmap(write)(kept.value, new, start)
        return kept.value


def _attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    causal: bool,
    dropout: float,
    rng: jax.Array | None,
) -> jax.Array:
    """The weighted values for each query, [batch, queries, heads, size], with float32 softmax.

    Args:
      query, key, value: float [batch, queries or keys, heads, size].
      mask, causal: see `Attention`.
      dropout, rng: fraction of the weights that is zeroed, and the key; None disables dropout.
    """
    # Fused attention does not support dropout, and computes softmax in float32 even for float64. It
    # accepts a mask, but cuDNN's kernel needs it as a full array of queries and keys.
    if rng is None and query.dtype != jnp.float64:
        fused: Literal['cudnn'] | None = 'cudnn' if mask is None and _fits_cudnn(query) else None
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=causal, implementation=fused
        )
    if causal:
        mask = jnp.tril(jnp.ones((query.shape[1], key.shape[1]), bool))[None, None]
    weights = nn.dot_product_attention_weights(
        query, key, mask=mask, dropout_rng=rng, dropout_rate=dropout, deterministic=rng is None,
        force_fp32_for_softmax=query.dtype in _HALF,
    )  # fmt: skip
    # A forced float32 softmax returns float32, which would propagate to all layers that follow.
    return jnp.einsum('bhqk,bkhs->bqhs', weights.astype(query.dtype), value)


def _fits_cudnn(query: jax.Array) -> bool:
    """Whether cuDNN's kernel supports these queries on the available devices."""
    size = query.shape[-1]
    if query.dtype not in _HALF or size % 8 or size > 128 or jax.default_backend() != 'gpu':
        return False
    device = jax.devices()[0]
    # Devices of other vendors are called gpu too, and GPUs before Ampere lack this kernel.
    if 'cuda' not in device.client.platform_version:
        return False
    return int(device.compute_capability.split('.')[0]) >= 8


_HALF = (jnp.bfloat16, jnp.float16)


class DropPath(nn.Module):
    """Stochastic depth: zeroes whole rows of a batch (Huang et al. 2016, arXiv:1603.09382).

    The random numbers depend on the position in the batch.
    """

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array | float, *, train: bool) -> jax.Array:
        """Scales the remaining rows so that the expected value is x.

        Args:
          x: float [batch, ...].
          rate: fraction of the rows that is zeroed, less than 1; it can be an array, so that it
            can differ between the blocks of a loop.
          train: whether rows are zeroed.
        """
        if not train:
            return x
        shape = (x.shape[0], *[1] * (x.ndim - 1))
        kept = jax.random.bernoulli(self.make_rng('dropout'), 1 - rate, shape)
        return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), 0)


class MLP(nn.Module):
    """Two dense layers with GELU between them, [..., width] -> [..., width].

    Attributes:
      hidden: width of the hidden layer.
      gelu: 'erf' is exact, 'tanh' approximate.
      dropout: fraction of the hidden activations that is zeroed in training.
      kernel_init, out_init: initialisers of the kernels `up` and `down`.
    """

    hidden: int
    gelu: str = 'erf'
    dropout: float = 0.0
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    out_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1]
        x = nn.Dense(self.hidden, kernel_init=self.kernel_init, name='up')(x)
        x = GELU[self.gelu](x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(width, kernel_init=self.out_init, name='down')(x)
