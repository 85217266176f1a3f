"""VGG: blocks of 3x3 convolutions with pooling, then dense layers (Simonyan & Zisserman 2014,
arXiv:1409.1556, table 1).

Layers are named as Keras names them: `block1_conv1` to `block5_conv3`.
"""

import jax
from flax import linen as nn

from jaxtrain.models.layers import Head, average_to, check_choices, conv, flat, max_pool

# Depth (layers with weights, the three dense ones of the paper included) -> convolutions per block:
# the paper's configurations A, B, D and E.
CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """[batch, height, width, channels] -> [batch, outputs].

    Attributes:
      outputs: width of the result.
      depth: 11, 13, 16 or 19.
      hidden: widths of the dense layers before the outputs.
      dropout: share of each hidden layer's activations that is zeroed in training (0.5 in the
        paper).
      pool: rows and columns that the features are averaged to first, 0 for as they are. PyTorch's
        VGG has 7, which matters at other sizes than 224.
      features: 'flatten' keeps the positions (height, width, channels), 'mean' averages over them.
    """

    outputs: int
    depth: int = 16
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.0
    pool: int = 0
    features: str = 'flatten'

    def setup(self):
        check_choices(self, _CHOICES)
        self.backbone = _Blocks(CONVOLUTIONS[self.depth], self.pool, self.features)
        self.head = Head(self.outputs, self.hidden, self.dropout)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.head(self.backbone(x), train=train)


_CHOICES = {'depth': tuple(CONVOLUTIONS), 'features': ('flatten', 'mean')}


def convolutions(depth: int) -> list[str]:
    """The names of the convolutions, in order."""
    blocks = enumerate(CONVOLUTIONS[depth], start=1)
    return [f'block{block}_conv{i + 1}' for block, count in blocks for i in range(count)]


class _Blocks(nn.Module):
    counts: tuple[int, ...]
    pool: int
    features: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for block, (count, width) in enumerate(zip(self.counts, WIDTHS, strict=True), start=1):
            for i in range(count):
                x = nn.relu(conv(width, 3, name=f'block{block}_conv{i + 1}')(x))
            x = max_pool(x, 2)
            if 0 in x.shape:
                raise ValueError(f'nothing is left of them after block {block}')
        if self.pool:
            x = average_to(x, self.pool)
        return x.mean((1, 2)) if self.features == 'mean' else flat(x)
