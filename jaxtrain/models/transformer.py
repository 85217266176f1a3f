"""The parts that transformers share: attention, with or without a cache, and the dense layers
between.

Kernels keep the heads apart: query, key and value are [width, heads, width / heads], out is [heads,
width / heads, width].
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

GELU = {
    'erf': functools.partial(nn.gelu, approximate=False),
    'tanh': functools.partial(nn.gelu, approximate=True),
}


class Attention(nn.Module):
    """Multi-head self-attention, [batch, length, width] -> [batch, length, width].

    Attributes:
      heads: how many; they share the width.
      dropout: share of the attention weights that is zeroed in training.
      kernel_init, out_init: initialisers of the query, key and value kernels, and of out's.
    """

    heads: int
    dropout: float = 0.0
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    out_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        *,
        train: bool,
        cache: int = 0,
        start: jax.Array | None = None,
    ) -> jax.Array:
        """Attention over x, or with a cache over all that went before.

        Args:
          x: float [batch, length, width].
          mask: bool, broadcast to [batch, heads, queries, keys]: True where a key is seen.
          train: whether weights are dropped.
          cache: positions of which keys and values are kept in the collection 'cache' (which must
            be mutable); 0 keeps none. With one, keys are those of the whole cache.
          start: int32 [batch], the position in the cache of the first of x in each row.

        Raises:
          ValueError: the heads do not share the width evenly.
        """
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f'a width of {width} cannot be shared by {self.heads} heads')
        split = (self.heads, width // self.heads)
        query, key, value = (
            nn.DenseGeneral(split, kernel_init=self.kernel_init, name=name)(x)
            for name in ('query', 'key', 'value')
        )
        if cache:
            key = self._keep('keys', key, cache, start)
            value = self._keep('values', value, cache, start)
        rng = self.make_rng('dropout') if train and self.dropout else None
        x = nn.dot_product_attention(
            query, key, value, mask=mask, dropout_rng=rng, dropout_rate=self.dropout,
            deterministic=not train,
        )  # fmt: skip
        return nn.DenseGeneral(width, axis=(-2, -1), kernel_init=self.out_init, name='out')(x)

    def _keep(self, name: str, new: jax.Array, length: int, start: jax.Array) -> jax.Array:
        """Writes [batch, steps, heads, size] into the cache; all of it, [batch, length, ...]."""
        batch, _, *rest = new.shape
        kept = self.variable('cache', name, jnp.zeros, (batch, length, *rest), new.dtype)
        write = functools.partial(lax.dynamic_update_slice_in_dim, axis=0)
        kept.value = jax.vmap(write)(kept.value, new, start)
        return kept.value


class MLP(nn.Module):
    """Two dense layers with GELU between them, [..., width] -> [..., width].

    Attributes:
      hidden: width between the layers.
      gelu: 'erf' is exact, 'tanh' approximate.
      dropout: share of the hidden activations that is zeroed in training.
      kernel_init, out_init: initialisers of the kernels up and down.
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
