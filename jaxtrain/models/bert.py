"""BERT: a bidirectional transformer encoder with post-layer normalisation (Devlin et al. 2018,
arXiv:1810.04805). MiniLM (Wang et al. 2020, arXiv:2002.10957) is a small one.

To compare sentences, use `embed`:

    vectors = model.apply(variables, tokens, method='embed')  # [batch, width], of length 1
    similarities = vectors @ vectors.T
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxtrain.models.parts.blocks import REMAT, Chain, Stack
from jaxtrain.models.parts.family import HEAD_AXES, Family
from jaxtrain.models.parts.layers import Head, check_choices
from jaxtrain.models.parts.transformer import BLOCK_AXES, GELU, MLP, TOKEN_AXES, Attention

_NORMAL = nn.initializers.truncated_normal(0.02)


class BERT(Family):
    """int32 tokens [batch, length] -> [batch, outputs].

    The default sizes are those of BERT-base, uncased.

    Attributes:
      outputs: width of the output.
      vocabulary: number of tokens in the vocabulary.
      width: width of the embeddings and of every layer's output.
      depth: number of blocks.
      heads: number of attention heads, which share the width.
      mlp: width of the hidden layer in a block; 0 means four times `width`.
      positions: maximum number of tokens per row.
      types: number of token types; in a pair of sentences, the first and the second.
      gelu: 'erf' is exact, 'tanh' approximate.
      norm_eps: added to the variance in layer normalisation.
      pad: the padding token of shorter rows, which attention masks out.
      pool: the features of a row: 'mean' averages the last hidden states of its tokens, as
        sentence-transformers do; 'token' applies a dense layer with tanh to that of the first
        token, as BERT's classifiers do; 'first' uses that of the first token unchanged.
      unit_length: whether `embed` normalises embeddings to length 1.
      dropout: fraction of the embeddings, the attention weights, each layer's output and the
        pooled features that is zeroed in training (0.1 in the paper).
      remat, scan: see `ViT`.
    """

    READS = 'tokens'
    FIXED = ('gelu', 'norm_eps', 'pad', 'unit_length')
    TENSOR = BLOCK_AXES + TOKEN_AXES + HEAD_AXES

    outputs: int
    vocabulary: int = 30522
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 0
    positions: int = 512
    types: int = 2
    gelu: str = 'erf'
    norm_eps: float = 1e-12
    pad: int = 0
    pool: str = 'token'
    unit_length: bool = True
    dropout: float = 0.0
    remat: str = 'none'
    scan: bool = False
    scan_ends: tuple[int, ...] = ()

    def setup(self):
        check_choices(self, {'gelu': tuple(GELU), 'pool': POOLS, 'remat': tuple(REMAT)})
        self.backbone = _Backbone(
            self.vocabulary, self.width, self.depth, self.heads, self.mlp or 4 * self.width,
            self.positions, self.types, self.gelu, self.norm_eps, self.pad, self.pool, self.dropout,
            Stack(self.remat, self.scan, self.scan_ends),
        )  # fmt: skip
        self.drop = nn.Dropout(self.dropout)
        self.head = Head(self.outputs)

    def __call__(
        self, tokens: jax.Array, types: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Args:
          tokens: int32 [batch, length], shorter rows padded with `pad` at the end.
          types: int32 [batch, length], the type of every token; None means 0 for all.
          train: whether dropout is active.

        Raises:
          ValueError: there are more tokens than positions.
        """
        x = self.backbone(tokens, types, train=train)
        return self.head(self.drop(x, deterministic=not train), train=train)

    def embed(
        self, tokens: jax.Array, types: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """The pooled features, [batch, width]; if `unit_length`, their dot products are cosines.

        A row of padding only yields 0 if pool is 'mean'.
        """
        x = self.backbone(tokens, types, train=train)
        if not self.unit_length:
            return x
        square = jnp.sum(x * x, -1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


POOLS = ('mean', 'token', 'first')


class _Backbone(nn.Module):
    vocabulary: int
    width: int
    depth: int
    heads: int
    mlp: int
    positions: int
    types: int
    gelu: str
    norm_eps: float
    pad: int
    pool: str
    dropout: float
    stack: Stack

    @nn.compact
    def __call__(self, tokens, types, *, train):
        length = tokens.shape[1]
        if length > self.positions:
            raise ValueError(f'{length} tokens are more than its {self.positions} positions')
        real = tokens != self.pad
        types = jnp.zeros_like(tokens) if types is None else types
        x = self._embedding(self.vocabulary, 'tokens')(tokens)
        x = x + self._embedding(self.positions, 'positions')(jnp.arange(length))
        x = x + self._embedding(self.types, 'types')(types)
        x = nn.LayerNorm(self.norm_eps, use_fast_variance=False, name='norm')(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        blocks = [
            _Block(self.heads, self.mlp, self.gelu, self.norm_eps, self.dropout, name=f'block_{i}')
            for i in range(self.depth)
        ]
        seen = real[:, None, None, :]
        chain = Chain(self, blocks, lambda block, x, _: block(x, seen, train=train), self.stack)
        return self._pooled(chain(x), real)

    def _embedding(self, count: int, name: str) -> nn.Embed:
        return nn.Embed(count, self.width, embedding_init=_NORMAL, name=name)

    def _pooled(self, x, real):
        if self.pool == 'mean':
            # At least 1, because evaluation pads a batch with rows of padding only.
            count = jnp.maximum(real.sum(1, keepdims=True), 1)
            return jnp.where(real[..., None], x, 0).sum(1) / count.astype(x.dtype)
        if self.pool == 'first':
            return x[:, 0]
        return nn.tanh(nn.Dense(self.width, kernel_init=_NORMAL, name='pooler')(x[:, 0]))


class _Block(nn.Module):
    heads: int
    mlp: int
    gelu: str
    norm_eps: float
    dropout: float

    @nn.compact
    def __call__(self, x, seen, *, train):
        inits: dict[str, Any] = {'kernel_init': _NORMAL, 'out_init': _NORMAL}
        drop = nn.Dropout(self.dropout, deterministic=not train)
        # Two passes, as in PyTorch: a one-pass variance loses digits if the mean is large.
        attention = Attention(self.heads, self.dropout, **inits, name='attention')
        x = x + drop(attention(x, seen, train=train))
        x = nn.LayerNorm(self.norm_eps, use_fast_variance=False, name='norm_1')(x)
        x = x + drop(MLP(self.mlp, self.gelu, **inits, name='mlp')(x, train=train))
        return nn.LayerNorm(self.norm_eps, use_fast_variance=False, name='norm_2')(x)
