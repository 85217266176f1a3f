"""What a model family declares of itself, for those who know it by nothing but this."""

from typing import ClassVar

from flax import linen as nn

# (regex over the parameter path, dimension) pairs.
Axes = tuple[tuple[str, int], ...]

HEAD_AXES: Axes = ((r'(.*/)?logits/kernel', 1), (r'(.*/)?logits/bias', 0))


class Family(nn.Module):
    """A model with the parameters `{'backbone': ..., 'head': ...}`; its fields are its config keys.

    Attributes:
      outputs: width of the result.
      READS: what it is given, the meaning of a feature of the data: 'image' or 'tokens'.
      FIXED: the fields that change what restored weights compute and show in no shape.
      TENSOR: the dimension of a parameter that can be cut over the mesh axis `tensor`; the first
        match counts, and a parameter without a match stays whole.
    """

    outputs: int

    READS: ClassVar[str] = 'image'
    FIXED: ClassVar[tuple[str, ...]] = ()
    TENSOR: ClassVar[Axes] = HEAD_AXES
