"""A plain convolutional network: 3x3 convolutions with pooling, then a head."""

import jax
from flax import linen as nn

from jaxtrain.models.parts.family import Family
from jaxtrain.models.parts.layers import Head, check_choices, conv, flat, max_pool


class CNN(Family):
    """[batch, height, width, channels] -> [batch, outputs].

    Attributes:
      outputs: width of the output.
      widths: channels of each convolution; a 2x2 max-pool follows each but the last one.
      norm: 'batch' adds BatchNorm after each convolution (which then has no bias), 'none' does not.
      padding: padding of the convolutions, 'SAME' or 'VALID'.
      features: 'mean' averages over positions, 'flatten' keeps them.
      hidden: widths of the head's hidden dense layers.
      dropout: fraction of the head's hidden activations that is zeroed in training.
    """

    FIXED = ('padding',)

    outputs: int
    widths: tuple[int, ...] = (32, 64, 128)
    norm: str = 'batch'
    padding: str = 'SAME'
    features: str = 'mean'
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    axis: str = ''

    def setup(self):
        check_choices(self, _CHOICES)
        self.backbone = _Convolutions(
            self.widths, self.norm, self.padding, self.features, self.axis
        )
        self.head = Head(self.outputs, self.hidden, self.dropout)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.head(self.backbone(x, train=train), train=train)


_CHOICES = {
    'norm': ('batch', 'none'),
    'padding': ('SAME', 'VALID'),
    'features': ('mean', 'flatten'),
}


class _Convolutions(nn.Module):
    widths: tuple[int, ...]
    norm: str
    padding: str
    features: str
    axis: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for number, width in enumerate(self.widths):
            if number:
                x = max_pool(x, 2)
            bias = self.norm == 'none'
            x = conv(width, 3, self.padding, use_bias=bias, name=f'conv_{number}')(x)
            if self.norm == 'batch':
                norm = nn.BatchNorm(
                    momentum=0.9, axis_name=self.axis or None, name=f'norm_{number}'
                )
                x = norm(x, use_running_average=not train)
            x = nn.relu(x)
            if 0 in x.shape:
                raise ValueError(f'no pixels are left after convolution {number}')
        return x.mean((1, 2)) if self.features == 'mean' else flat(x)
