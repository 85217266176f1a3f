"""Precision policies: the dtype that a model computes in, while parameters stay float32.

Models do not specify dtypes: a Linen layer computes in the dtype of its parameters and inputs. A
policy casts these, except for the parameters of norms, and casts the results of norms: statistics,
scale and bias of norms are always float32. Attention computes softmax in float32, and tasks compute
their losses in float32.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxtrain.params.partition import flatten, unflatten

POLICIES = {'float32': None, 'bfloat16': jnp.bfloat16}
NORMS = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Precision:
    """A policy for one model.

    Attributes:
      compute: dtype of the model's layers; None leaves everything as it is.
      norms: paths of the modules that stay in float32.
    """

    compute: Any = None
    norms: frozenset[str] = frozenset()

    def params(self, params: Any) -> Any:
        """The nested parameters, cast for the model."""
        if self.compute is None:
            return params
        flat = flatten(params)
        return unflatten(
            {p: x if p.rsplit('/', 1)[0] in self.norms else self._cast(x) for p, x in flat.items()}
        )

    def inputs(self, inputs: jax.Array) -> jax.Array:
        """The model inputs, cast for the model; tokens stay integers."""
        return inputs if self.compute is None else self._cast(inputs)

    def norms_in_float32(self) -> contextlib.AbstractContextManager:
        """Context for `model.apply`, in which norms return the dtype of the other layers."""
        if self.compute is None:
            return contextlib.nullcontext()

        def intercept(call, args, kwargs, context):
            out = call(*args, **kwargs)
            norm = isinstance(context.module, NORMS) and context.method_name == '__call__'
            return self._cast(out) if norm else out

        return nn.intercept_methods(intercept)

    def _cast(self, x: jax.Array) -> jax.Array:
        return x.astype(self.compute) if jnp.issubdtype(x.dtype, jnp.floating) else x


FLOAT32 = Precision()


def make_precision(cfg, model: nn.Module, inputs: jax.ShapeDtypeStruct) -> Precision:
    """The policy that `config.precision` names, for a model.

    Args:
      cfg: the config.
      model: the model; it is traced to find its norms.
      inputs: its inputs, with a batch of 1.

    Raises:
      UserError: unknown policy.
    """
    compute = POLICIES[cfg.choose('precision', POLICIES)]
    if compute is None:
        return FLOAT32
    norms = set()

    def note(call, args, kwargs, context):
        if isinstance(context.module, NORMS):
            norms.add('/'.join(context.module.path))
        return call(*args, **kwargs)

    def trace():
        with nn.intercept_methods(note):
            zeros = jnp.zeros(inputs.shape, inputs.dtype)
            return model.init(jax.random.key(0), zeros, train=False)

    jax.eval_shape(trace)
    return Precision(compute, frozenset(norms))
