"""The multi-layer perceptron: flattened input, dense layers with ReLU, a linear head."""

import jax
from flax import linen as nn

from jaxtrain.models.parts.family import Family
from jaxtrain.models.parts.layers import Head, flat


class MLP(Family):
    """[batch, height, width, channels] -> [batch, outputs].

    Attributes:
      outputs: width of the output.
      hidden: widths of the hidden layers (the backbone).
      dropout: fraction of each hidden layer's activations that is zeroed in training.
    """

    outputs: int
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.0

    def setup(self):
        self.backbone = _Hidden(self.hidden, self.dropout)
        self.head = Head(self.outputs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.head(self.backbone(flat(x), train=train), train=train)


class _Hidden(nn.Module):
    widths: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for number, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=f'dense_{number}')(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x
