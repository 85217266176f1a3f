"""TrainState, which a run carries from step to step, and its initialisation."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxtrain.data.features import IMAGE, UNITS, Feature
from jaxtrain.errors import UserError
from jaxtrain.params.partition import Partition, merge


class TrainState(struct.PyTreeNode):
    """A pytree; the step is a pure function of it and a batch.

    Attributes:
      step: int32 scalar, optimizer steps taken.
      seed: uint32 scalar. Random numbers are `fold_in(seed, step)`. It is an argument and not
        a constant of the program, so that one compiled program serves every seed.
      params: nested dict of all parameters, including frozen ones.
      model_state: nested dict of non-trained variables by collection (BatchNorm statistics).
      opt_state: optax state of the trainable parameters.
      ema: moving average of the trainable parameters, or {} when config.ema is 0.
    """

    step: Any
    seed: Any
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any

    def averaged_params(self, part: Partition) -> Any:
        """The parameters to evaluate and export: the moving average if there is one."""
        return merge(self.ema, part.split(self.params)[1]) if self.ema else self.params


@dataclass(frozen=True)
class Update:
    """How gradients update the parameters.

    Attributes:
      tx: the optimizer of the trainable parameters.
      ema: decay of the moving average of the parameters; 0 disables it.
      accumulate: number of parts in which the gradients of a batch are computed.
    """

    tx: optax.GradientTransformation
    ema: float = 0.0
    accumulate: int = 1


# jit caches the trace of each model; a start needs the shapes of one several times.
@functools.partial(jax.jit, static_argnums=(0, 2))
def init_variables(model, seed: jax.Array, inputs: jax.ShapeDtypeStruct) -> tuple[Any, Any]:
    """Initial (params, model_state) of a model, as a pure function of the seed."""
    key = jax.random.key(seed)
    variables = dict(model.init(key, jnp.zeros(inputs.shape, inputs.dtype), train=False))
    return variables.pop('params'), variables


def abstract_inputs(feature: Feature) -> jax.ShapeDtypeStruct:
    """The model input for one example with that feature: float32 [1, height, width, channels] for
    an image, which is normalised first; int32 [1, length] for tokens.
    """
    dtype = np.float32 if feature.meaning == IMAGE else feature.dtype
    return jax.ShapeDtypeStruct((1, *feature.shape), dtype)


def abstract_variables(model, feature: Feature) -> tuple[Any, Any]:
    """Nested ShapeDtypeStructs of a model's (params, model_state).

    Args:
      model: a Linen module.
      feature: the input feature.

    Raises:
      UserError: the model cannot read inputs of this size.
    """
    inputs = abstract_inputs(feature)
    try:
        return init_variables.eval_shape(model, np.uint32(0), inputs)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'config.model: {type(model).__name__} cannot take {UNITS[feature.meaning]} of size '
            f'{"x".join(map(str, feature.shape))}: {reason}'
        ) from error


def init_state(
    variables: tuple[Any, Any], seed: jax.typing.ArrayLike, update: Update, part: Partition
) -> TrainState:
    """The state before the first step, with the given nested (params, model_state)."""
    params, model_state = variables
    trainable, _ = part.split(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        params=params,
        model_state=model_state,
        opt_state=update.tx.init(trainable),
        # A copy, because the step donates its state, and a buffer can be donated only once.
        ema=jax.tree.map(jnp.copy, trainable) if update.ema else {},
    )
