"""VGG: blocks of 3x3 convolutions with pooling, then dense layers (Simonyan & Zisserman 2014,
arXiv:1409.1556, table 1).

Layers are named as in Keras: `block1_conv1` to `block5_conv3`.
"""

import functools

import jax
from flax import linen as nn

from jaxtrain.models.parts.blocks import checkpointed
from jaxtrain.models.parts.family import Family
from jaxtrain.models.parts.layers import (
    POOLS,
    Head,
    average_to,
    check_choices,
    check_widths,
    conv,
    flat,
    max_pool,
)

# Depth (layers with weights, including the paper's three dense layers) -> convolutions per block:
# configurations A, B, D and E of the paper.
CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
WIDTHS = (64, 128, 256, 512, 512)


class VGG(Family):
    """[batch, height, width, channels] -> [batch, outputs].

    Attributes:
      outputs: width of the output.
      depth: 11, 13, 16 or 19.
      hidden: widths of the head's hidden dense layers.
      dropout: fraction of each hidden layer's activations that is zeroed in training (0.5 in
        the paper).
      pool: rows and columns that the features are first averaged to; 0 disables this. PyTorch's VGG
        has 7, which makes a difference for image sizes other than 224.
      features: 'flatten' keeps the positions (height, width, channels); 'mean', 'max' and 'avgmax'
        (the mean of both) reduce them.
      widths: channels of the blocks.
      remat: 'full' recomputes a block's activations in the backward pass, 'none' saves them.
    """

    FIXED = ('pool',)

    outputs: int
    depth: int = 16
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.0
    pool: int = 0
    features: str = 'flatten'
    widths: tuple[int, ...] = WIDTHS
    remat: str = 'none'

    def setup(self):
        check_choices(self, _CHOICES)
        check_widths(self, len(WIDTHS))
        self.backbone = _Blocks(
            CONVOLUTIONS[self.depth], self.widths, self.pool, self.features, self.remat
        )
        self.head = Head(self.outputs, self.hidden, self.dropout)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.head(self.backbone(x), train=train)


_CHOICES = {
    'depth': tuple(CONVOLUTIONS),
    'features': ('flatten', *POOLS),
    'remat': ('none', 'full'),
}


def convolutions(depth: int) -> list[str]:
    """The names of the convolutions, in order."""
    blocks = enumerate(CONVOLUTIONS[depth], start=1)
    return [f'block{block}_conv{i + 1}' for block, count in blocks for i in range(count)]


class _Blocks(nn.Module):
    counts: tuple[int, ...]
    widths: tuple[int, ...]
    pool: int
    features: str
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for number in range(1, len(self.counts) + 1):
            x = checkpointed(functools.partial(_Blocks._block, number=number), self.remat)(self, x)
            if 0 in x.shape:
                raise ValueError(f'no pixels are left after block {number}')
        if self.pool:
            x = average_to(x, self.pool)
        return flat(x) if self.features == 'flatten' else POOLS[self.features](x, (1, 2))

    def _block(self, x: jax.Array, number: int) -> jax.Array:
        width = self.widths[number - 1]
        for i in range(self.counts[number - 1]):
            x = nn.relu(conv(width, 3, name=f'block{number}_conv{i + 1}')(x))
        return max_pool(x, 2)
