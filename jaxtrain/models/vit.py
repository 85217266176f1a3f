"""The Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929).

The class covers the networks of several frameworks: AugReg, big_vision, timm, torchvision, Hugging
Face and DINOv2 differ in the GELU, the eps of the norms, the pooling of the tokens, and the tokens
that have positions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxtrain.errors import UserError
from jaxtrain.models.parts.blocks import REMAT, Chain, Stack
from jaxtrain.models.parts.family import HEAD_AXES, Family
from jaxtrain.models.parts.layers import POOLS, check_choices
from jaxtrain.models.parts.transformer import BLOCK_AXES, GELU, MLP, Attention, DropPath


class ViT(Family):
    """[batch, height, width, channels] -> [batch, outputs].

    Positions are stored as a grid, `backbone/position` [rows, columns, width], so that they can be
    resized unambiguously; that of the class token is stored separately.

    Attributes:
      outputs: width of the output.
      patch: height and width of a patch, in pixels.
      width, depth, heads, mlp: sizes of the transformer; `mlp` is the width of the hidden layer in
        a block.
      class_token: whether there is a class token.
      class_position: whether a position is added to the first of the class token and registers;
        if not, only the patches have positions, as in big_vision.
      registers: number of additional tokens that the output does not use (Darcet et al. 2023,
        arXiv:2309.16588).
      pool: input of the head: 'token' is the class token, 'mean' the mean of the patches, 'max'
        their maximum, 'avgmax' the mean of these two, and 'both' the class token followed by the
        mean, as in DINOv2.
      norm_after_pool: whether the last norm follows the pooling (timm's fc_norm) or precedes it.
      representation: width of a dense layer with tanh in the head; 0 omits the layer.
      gelu: 'erf' is exact, 'tanh' approximate.
      norm_eps: added to the variance in layer normalisation.
      layer_scale: initial value of the factors on each layer's output; 0 omits the factors (Touvron
        et al. 2021, arXiv:2103.17239).
      dropout: fraction of embeddings and hidden activations that is zeroed in training.
      drop_path: fraction of the rows that skip the last block in training; it grows linearly from 0
        in the first block.
      position: 'learned', or 'sincos2d': constant sines and cosines of rows and columns (Chen
        et al. 2021, arXiv:2104.02057; Beyer et al. 2022, arXiv:2205.01580).
      remat: what is recomputed in the backward pass instead of saved: 'none', 'dots' (everything
        except matrix products) or 'full' (everything except the input of each block).
      scan: whether a loop runs the blocks, which compiles faster and may run slower.
    """

    FIXED = ('gelu', 'norm_eps', 'norm_after_pool')
    TENSOR = BLOCK_AXES + HEAD_AXES

    outputs: int
    patch: tuple[int, int] = (16, 16)
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    class_token: bool = True
    class_position: bool = True
    registers: int = 0
    pool: str = 'token'
    norm_after_pool: bool = False
    representation: int = 0
    gelu: str = 'erf'
    norm_eps: float = 1e-6
    layer_scale: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    position: str = 'learned'
    remat: str = 'none'
    scan: bool = False
    scan_ends: tuple[int, ...] = ()

    def idle(self) -> dict[str, str]:
        if self.class_token or self.registers:
            return super().idle()
        return {**super().idle(), 'class_position': 'there is no class token'}

    def setup(self):
        check_choices(self, _CHOICES)
        if not 0 <= self.drop_path < 1:
            raise UserError(
                f'config.model.drop_path={self.drop_path} must be at least 0 and less than 1'
            )
        self.backbone = _Backbone(
            self.patch, self.width, self.depth, self.heads, self.mlp, self.class_token,
            self.class_position, self.registers, self.pool, self.norm_after_pool, self.gelu,
            self.norm_eps, self.layer_scale, self.dropout, self.drop_path, self.position,
            Stack(self.remat, self.scan, self.scan_ends),
        )  # fmt: skip
        self.head = _Head(self.outputs, self.representation)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.head(self.backbone(x, train=train))


_CHOICES = {
    'gelu': tuple(GELU),
    'pool': ('token', *POOLS, 'both'),
    'position': ('learned', 'sincos2d'),
    'remat': tuple(REMAT),
}


class _Backbone(nn.Module):
    patch: tuple[int, int]
    width: int
    depth: int
    heads: int
    mlp: int
    class_token: bool
    class_position: bool
    registers: int
    pool: str
    norm_after_pool: bool
    gelu: str
    norm_eps: float
    layer_scale: float
    dropout: float
    drop_path: float
    position: str
    stack: Stack

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self._tokens(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        blocks = [
            _Block(
                self.heads, self.mlp, self.gelu, self.norm_eps, self.layer_scale, self.dropout,
                name=f'block_{i}',
            )
            for i in range(self.depth)
        ]  # fmt: skip
        rates = jnp.linspace(0, self.drop_path, self.depth) if self.drop_path else None
        chain = Chain(self, blocks, lambda block, x, rate: block(x, rate, train=train), self.stack)
        x = chain(x, rates)
        # Two passes, as in PyTorch: a one-pass variance loses digits if the mean is large.
        norm = nn.LayerNorm(self.norm_eps, use_fast_variance=False, name='norm')
        return norm(self._pooled(x)) if self.norm_after_pool else self._pooled(norm(x))

    def _tokens(self, x: jax.Array) -> jax.Array:
        """Class token, registers and patches with their positions, [batch, tokens, width]."""
        batch = x.shape[0]
        rows, columns = (size // side for size, side in zip(x.shape[1:3], self.patch, strict=True))
        if (rows * self.patch[0], columns * self.patch[1]) != x.shape[1:3] or not rows * columns:
            raise ValueError(
                f'they cannot be cut into patches of {self.patch[0]}x{self.patch[1]} pixels'
            )
        # The initial scale is that of a dense layer over the numbers of a patch.
        init = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
        x = nn.Conv(
            self.width, self.patch, self.patch, 'VALID', kernel_init=init, name='patch'
        )(x)  # fmt: skip
        small = nn.initializers.truncated_normal(0.02)
        if self.position == 'learned':
            x = x + self.param('position', small, (rows, columns, self.width))
        else:
            x = x + jnp.asarray(sincos2d(rows, columns, self.width), x.dtype)
        x = x.reshape(batch, rows * columns, self.width)
        front = []
        if self.class_token:
            front.append(self.param('class_token', small, (1, self.width)))
        if self.registers:
            front.append(self.param('registers', small, (self.registers, self.width)))
        if not front:
            return x
        tokens = jnp.concatenate(front)
        if self.class_position:
            position = self.param('class_position', small, (1, self.width))
            tokens = tokens.at[:1].add(position)
        return jnp.concatenate([jnp.broadcast_to(tokens, (batch, *tokens.shape)), x], 1)

    def _pooled(self, x: jax.Array) -> jax.Array:
        patches = x[:, self.class_token + self.registers :]
        if self.pool in POOLS:
            return POOLS[self.pool](patches, 1)
        if not self.class_token:
            raise ValueError(f'pool={self.pool!r} needs the class token')
        both = self.pool == 'both'
        return jnp.concatenate([x[:, 0], patches.mean(1)], -1) if both else x[:, 0]


class _Block(nn.Module):
    heads: int
    mlp: int
    gelu: str
    norm_eps: float
    layer_scale: float
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array | None, *, train: bool) -> jax.Array:
        inits: dict[str, Any] = {'kernel_init': _XAVIER, 'out_init': _XAVIER}
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = nn.LayerNorm(self.norm_eps, use_fast_variance=False, name='norm_1')(x)
        y = Attention(self.heads, **inits, name='attention')(y, None, train=train)
        x = x + self._skipped(drop(self._scaled('scale_1', y)), rate, train)
        y = nn.LayerNorm(self.norm_eps, use_fast_variance=False, name='norm_2')(x)
        y = MLP(self.mlp, self.gelu, self.dropout, **inits, name='mlp')(y, train=train)
        return x + self._skipped(drop(self._scaled('scale_2', y)), rate, train)

    def _skipped(self, x: jax.Array, rate: jax.Array | None, train: bool) -> jax.Array:
        return x if rate is None else DropPath()(x, rate, train=train)

    def _scaled(self, name: str, x: jax.Array) -> jax.Array:
        if not self.layer_scale:
            return x
        start = nn.initializers.constant(self.layer_scale)
        return x * self.param(name, start, x.shape[-1:])


class _Head(nn.Module):
    outputs: int
    representation: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.representation:
            x = jnp.tanh(nn.Dense(self.representation, name='representation')(x))
        # All classes are equally likely at first, as in the paper.
        return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros, name='logits')(x)


def sincos2d(rows: int, columns: int, width: int) -> np.ndarray:
    """float32 [rows, columns, width]: sine and cosine of the column, then of the row, at width / 4
    frequencies from 1 to 1/10,000.

    Raises:
      ValueError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"position='sincos2d' needs a width that is a multiple of 4, not {width}")
    frequencies = 10000.0 ** (-np.arange(width // 4) / max(width // 4 - 1, 1))
    row, column = (
        index[..., None] * frequencies
        for index in np.meshgrid(np.arange(rows), np.arange(columns), indexing='ij')
    )
    waves = [np.sin(column), np.cos(column), np.sin(row), np.cos(row)]
    return np.concatenate(waves, -1).astype(np.float32)


_XAVIER = nn.initializers.xavier_uniform()
