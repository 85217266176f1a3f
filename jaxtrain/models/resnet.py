"""ResNet: residual blocks of convolutions with BatchNorm (He et al. 2015, arXiv:1512.03385).

The class covers the networks of several frameworks, which differ in the strided convolution of a
block, the padding and the eps of BatchNorm.
"""

from dataclasses import dataclass

import jax
from flax import linen as nn

from jaxtrain.models.parts.blocks import checkpointed
from jaxtrain.models.parts.family import Family
from jaxtrain.models.parts.layers import POOLS, Head, check_choices, check_widths

# Depth -> (blocks per stage, whether blocks are bottlenecks).
STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
EXPANSION = 4  # output channels of a bottleneck / width of its stage


class ResNet(Family):
    """[batch, height, width, channels] -> [batch, outputs].

    Attributes:
      outputs: width of the output.
      depth: 18, 34, 50, 101 or 152.
      stride: the strided convolution of a bottleneck: '3x3' as in torchvision and timm
        ("v1.5"), '1x1' as in the paper and in Keras.
      conv_bias: whether convolutions have biases, as in Keras.
      norm_eps: added to the variance in BatchNorm.
      norm_momentum: weight of the old values in BatchNorm's running statistics.
      padding: 'explicit' pads both sides equally; 'SAME' pads as XLA and TensorFlow do, which
        differs if the stride is 2 and the size is even.
      zero_init: whether the scale of each block's last BatchNorm starts at 0, so that the
        block starts as the identity (Goyal et al. 2017, arXiv:1706.02677).
      hidden: widths of the head's hidden dense layers.
      dropout: fraction of the head's hidden activations that is zeroed in training.
      widths: channels of the stages; a bottleneck returns four times as many.
      stem: 'conv7' is a 7x7 convolution of stride 2 and a max-pool; 'conv3', for small images, is a
        3x3 convolution alone (section 4.2 of the paper).
      pool: how positions become features: 'mean', 'max', or 'avgmax', the mean of both.
      remat: 'full' recomputes a block's activations in the backward pass, 'none' saves them.
    """

    FIXED = ('stride', 'norm_eps', 'padding', 'pool')

    outputs: int
    depth: int = 50
    stride: str = '3x3'
    conv_bias: bool = False
    norm_eps: float = 1e-5
    norm_momentum: float = 0.9
    padding: str = 'explicit'
    zero_init: bool = True
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: str = 'conv7'
    pool: str = 'mean'
    remat: str = 'none'
    axis: str = ''

    def setup(self):
        check_choices(self, _CHOICES)
        check_widths(self, len(STAGES[self.depth][0]))
        layers = _Layers(self.conv_bias, self.norm_eps, self.norm_momentum, self.padding, self.axis)
        self.backbone = _Stages(
            self.depth, self.stride, layers, self.zero_init, self.widths, self.stem, self.pool,
            self.remat,
        )  # fmt: skip
        self.head = Head(self.outputs, self.hidden, self.dropout)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.head(self.backbone(x, train=train), train=train)


_CHOICES = {
    'depth': tuple(STAGES),
    'stride': ('3x3', '1x1'),
    'padding': ('explicit', 'SAME'),
    'stem': ('conv7', 'conv3'),
    'pool': tuple(POOLS),
    'remat': ('none', 'full'),
}


@dataclass(frozen=True)
class _Layers:
    """Makes convolutions and norms."""

    bias: bool
    eps: float
    momentum: float
    padding: str
    axis: str

    def conv(self, width: int, window: int, stride: int, name: str) -> nn.Conv:
        padding = window // 2 if self.padding == 'explicit' else 'SAME'
        return nn.Conv(
            width, (window, window), (stride, stride), padding, use_bias=self.bias,
            kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'), name=name,
        )  # fmt: skip

    def norm(self, name: str, zero: bool = False) -> nn.BatchNorm:
        scale = nn.initializers.zeros if zero else nn.initializers.ones
        return nn.BatchNorm(
            momentum=self.momentum, epsilon=self.eps, scale_init=scale, name=name,
            use_fast_variance=False, axis_name=self.axis or None,
        )  # fmt: skip


class _Stages(nn.Module):
    depth: int
    stride: str
    layers: _Layers
    zero_init: bool
    widths: tuple[int, ...]
    stem: str
    pool: str
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        counts, bottleneck = STAGES[self.depth]
        call = checkpointed(lambda block, x: block(x, train=train), self.remat)
        x = self._stem(x, train)
        for stage, (count, width) in enumerate(zip(counts, self.widths, strict=True), start=1):
            for number in range(count):
                block = _Block(
                    width, 2 if stage > 1 and number == 0 else 1, bottleneck, self.stride,
                    self.layers, self.zero_init, name=f'stage{stage}_block{number}',
                )  # fmt: skip
                x = call(block, x)
        return POOLS[self.pool](x, (1, 2))

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        window, step = (7, 2) if self.stem == 'conv7' else (3, 1)
        x = self.layers.conv(self.widths[0], window, step, 'conv_0')(x)
        x = nn.relu(self.layers.norm('norm_0')(x, use_running_average=not train))
        if self.stem == 'conv3':
            return x
        # Values are not negative here, so padding with zeros does not change the maximum.
        padding = ((1, 1), (1, 1)) if self.layers.padding == 'explicit' else 'SAME'
        return nn.max_pool(x, (3, 3), (2, 2), padding)


class _Block(nn.Module):
    width: int
    step: int
    bottleneck: bool
    stride: str
    layers: _Layers
    zero_init: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        convolutions = self._convolutions()
        shortcut, width = x, convolutions[-1][0]
        if x.shape[-1] != width or self.step > 1:
            shortcut = self.layers.conv(width, 1, self.step, 'conv_down')(x)
            shortcut = self.layers.norm('norm_down')(shortcut, use_running_average=not train)
        last = len(convolutions)
        for i, (channels, window, step) in enumerate(convolutions, start=1):
            x = self.layers.conv(channels, window, step, f'conv_{i}')(x)
            norm = self.layers.norm(f'norm_{i}', zero=self.zero_init and i == last)
            x = norm(x, use_running_average=not train)
            x = nn.relu(x) if i < last else x
        return nn.relu(x + shortcut)

    def _convolutions(self) -> tuple[tuple[int, int, int], ...]:
        """(channels, window, stride) of each convolution."""
        if not self.bottleneck:
            return (self.width, 3, self.step), (self.width, 3, 1)
        first, second = (self.step, 1) if self.stride == '1x1' else (1, self.step)
        wide = EXPANSION * self.width
        return (self.width, 1, first), (self.width, 3, second), (wide, 1, 1)
