"""GPT-2: a causal transformer with pre-layer normalisation (Radford et al. 2019, "Language
Models are Unsupervised Multitask Learners", section 2.3).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxtrain.models.parts.blocks import REMAT, Chain, Stack
from jaxtrain.models.parts.family import HEAD_AXES, Family
from jaxtrain.models.parts.layers import check_choices
from jaxtrain.models.parts.transformer import BLOCK_AXES, GELU, MLP, TOKEN_AXES, Attention

_STD = 0.02


class GPT(Family):
    """int32 tokens [batch, length] -> logits of the next token [batch, length, outputs].

    The default sizes are those of the smallest GPT-2.

    Attributes:
      outputs: number of tokens in the vocabulary.
      width: width of the embeddings and of every layer's output.
      depth: number of blocks.
      heads: number of attention heads, which share the width.
      context: maximum number of tokens per row.
      mlp: width of the hidden layer in a block; 0 means four times `width`.
      gelu: 'tanh' is GPT-2's approximation, 'erf' exact.
      scale_attention: whether products of queries and keys are divided by the square root of a
        head's size.
      norm_eps: added to the variance in layer normalisation.
      dropout: fraction of the embeddings, the attention weights and each layer's output that is
        zeroed in training (0.1 in the original code).
      tied: whether the token embedding is also the output layer; otherwise that is
        head/logits/kernel.
      remat, scan: see `ViT`.
    """

    READS = 'tokens'
    FIXED = ('gelu', 'norm_eps', 'scale_attention')
    TENSOR = BLOCK_AXES + TOKEN_AXES + HEAD_AXES

    outputs: int
    width: int = 768
    depth: int = 12
    heads: int = 12
    context: int = 1024
    mlp: int = 0
    gelu: str = 'tanh'
    norm_eps: float = 1e-5
    dropout: float = 0.0
    tied: bool = True
    scale_attention: bool = True
    remat: str = 'none'
    scan: bool = False
    scan_ends: tuple[int, ...] = ()

    def setup(self):
        check_choices(self, {'gelu': tuple(GELU), 'remat': tuple(REMAT)})
        self.backbone = _Backbone(
            self.outputs, self.width, self.depth, self.heads, self.context,
            self.mlp or 4 * self.width, self.gelu, self.norm_eps, self.dropout,
            self.scale_attention,
            Stack(self.remat, self.scan, self.scan_ends),
        )  # fmt: skip
        if not self.tied:
            self.head = _Head(self.outputs)

    def __call__(
        self, tokens: jax.Array, *, train: bool, cache: int = 0, start: jax.Array | None = None
    ) -> jax.Array:
        """The logits of the token that follows each; see `features` for the cache.

        Raises:
          ValueError: there are more tokens than the context has positions.
        """
        return self.logits(self.features(tokens, train=train, cache=cache, start=start))

    def features(
        self, tokens: jax.Array, *, train: bool, cache: int = 0, start: jax.Array | None = None
    ) -> jax.Array:
        """The last hidden states, [batch, length, width].

        Args:
          tokens: int32 [batch, length].
          train: whether dropout is active.
          cache: number of positions whose keys and values are kept in the collection 'cache'
            (apply with `mutable=['cache']`); 0 disables the cache. The first call is given the
            whole prompts and creates the cache; later calls are given the tokens that follow.
          start: int32 [batch], position of the first token of each row in the cache; None means
            0. A token attends to positions up to its own, so later ones (the padding of a shorter
            prompt) have no effect, and the tokens that follow overwrite them.
        """
        return self.backbone(tokens, train=train, cache=cache, start=start)

    def logits(self, features: jax.Array) -> jax.Array:
        """[..., width] -> [..., outputs]."""
        return self.backbone.tokens.attend(features) if self.tied else self.head(features)


class _Backbone(nn.Module):
    vocabulary: int
    width: int
    depth: int
    heads: int
    context: int
    mlp: int
    gelu: str
    norm_eps: float
    dropout: float
    scaled: bool
    stack: Stack

    def setup(self):
        normal = nn.initializers.normal(_STD)
        self.tokens = nn.Embed(self.vocabulary, self.width, embedding_init=normal)
        self.positions = nn.Embed(self.context, self.width, embedding_init=normal)
        self.drop = nn.Dropout(self.dropout)
        self.block = [
            _Block(
                self.depth,
                self.heads,
                self.mlp,
                self.gelu,
                self.norm_eps,
                self.dropout,
                self.scaled,
            )
            for _ in range(self.depth)
        ]
        # Two passes, as in PyTorch: a one-pass variance loses digits if the mean is large.
        self.norm = nn.LayerNorm(self.norm_eps, use_fast_variance=False)

    def __call__(self, tokens, *, train, cache, start):
        length = tokens.shape[1]
        if max(length, cache) > self.context:
            raise ValueError(
                f'{max(length, cache)} tokens are more than the {self.context} of its context'
            )
        start = jnp.zeros(tokens.shape[0], jnp.int32) if start is None else start
        positions = start[:, None] + jnp.arange(length)
        seen = jnp.arange(cache) <= positions[:, None, :, None] if cache else None
        x = self.tokens(tokens) + self.positions(positions)
        x = self.drop(x, deterministic=not train)

        def call(block, x, _):
            return block(x, seen, train=train, cache=cache, start=start)

        return self.norm(Chain(self, self.block, call, self.stack)(x, loop=not cache))


class _Block(nn.Module):
    depth: int
    heads: int
    mlp: int
    gelu: str
    norm_eps: float
    dropout: float
    scaled: bool

    @nn.compact
    def __call__(self, x, seen, *, train, cache, start):
        # 2 * depth layers add to the residual stream; its variance should not grow with depth.
        inits: dict[str, Any] = {
            'kernel_init': nn.initializers.normal(_STD),
            'out_init': nn.initializers.normal(_STD / (2 * self.depth) ** 0.5),
        }
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = nn.LayerNorm(self.norm_eps, use_fast_variance=False, name='norm_1')(x)
        attention = Attention(self.heads, self.dropout, self.scaled, **inits, name='attention')
        causal = seen is None
        y = attention(y, seen, train=train, causal=causal, cache=cache, start=start)
        x = x + drop(y)
        y = nn.LayerNorm(self.norm_eps, use_fast_variance=False, name='norm_2')(x)
        return x + drop(MLP(self.mlp, self.gelu, **inits, name='mlp')(y, train=train))


class _Head(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
        normal = nn.initializers.normal(_STD)
        return nn.Dense(self.outputs, use_bias=False, kernel_init=normal, name='logits')(x)
