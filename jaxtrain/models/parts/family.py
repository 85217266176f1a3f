"""What a model family declares for the rest of the code."""

from typing import ClassVar

from flax import linen as nn

# (regex over the parameter path, dimension) pairs.
Axes = tuple[tuple[str, int], ...]

HEAD_AXES: Axes = ((r'(.*/)?logits/kernel', 1), (r'(.*/)?logits/bias', 0))


class Family(nn.Module):
    """A model with the parameters `{'backbone': ..., 'head': ...}`; its fields are its config keys.

    Attributes:
      outputs: width of the output.
      READS: the meaning of the input feature, 'image' or 'tokens'.
      FIXED: fields that change what restored weights compute, but that no parameter shape shows.
      TENSOR: the dimension of each parameter that can be sharded over the mesh axis `tensor`; the
        first match applies, and a parameter without a match is not sharded.
    """

    outputs: int

    READS: ClassVar[str] = 'image'
    FIXED: ClassVar[tuple[str, ...]] = ()
    TENSOR: ClassVar[Axes] = HEAD_AXES

    def idle(self) -> dict[str, str]:
        """The fields that have no effect beside the values of others, and why."""
        reasons = {}
        if not getattr(self, 'hidden', True):
            reasons['dropout'] = 'the head has no hidden layers'
        if not getattr(self, 'scan', True):
            reasons['scan_ends'] = 'scan is off'
        return reasons
