"""The train step and the evaluation step: pure functions, made once from plain parts.

Only the trainable parameters are differentiated. So frozen parameters cost no backward pass, hold
no optimizer state and take no part in the gradient norm, whatever reads that norm.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtrain.data.on_device.inputs import Inputs
from jaxtrain.parallel.replicas import WHOLE, Replicas
from jaxtrain.params.partition import Partition, merge
from jaxtrain.step.precision import FLOAT32, Precision
from jaxtrain.step.state import TrainState
from jaxtrain.tasks.task import WEIGHT, Prediction, Task, totals

Batch = dict[str, jax.Array]
# (model inputs, the batch, float32 [batch] that is 0 for rows that count for nothing, or None)
MicroBatch = tuple[jax.Array, Batch, jax.Array | None]


def make_train_step(
    model,
    task: Task,
    inputs: Inputs,
    tx: optax.GradientTransformation,
    part: Partition,
    ema: float = 0.0,
    accumulate: int = 1,
    precision: Precision = FLOAT32,
    replicas: Replicas = WHOLE,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step `(state, batch) -> (state, metrics)`.

    Args:
      model: a Linen module called as `model.apply(variables, inputs, train=...)`.
      task: the loss, and the values of each example.
      inputs: how a batch reaches the model.
      tx: optimizer over the trainable parameters.
      part: which parameters are trained.
      ema: decay of the moving average; 0 keeps none.
      accumulate: parts that the batch is taken in.
      precision: what the model computes in.
      replicas: what to do about the devices that it is shared out to.

    Returns:
      A function of a TrainState and a batch, arrays by name as `Source.features` tells; its metrics
      are float32 scalars: the task's own (means over the batch), `grad_norm` before clipping, and
      `param_norm` after the update, both over the trainable parameters.
    """

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        augment_key, dropout_key = jax.random.split(key)
        whole = replicas.own(inputs.train(replicas.gather(batch), augment_key))
        trainable, frozen = part.split(state.params)

        def loss(trainable: Any, model_state: Any, micro: MicroBatch, key: jax.Array):
            given, batch, counted = micro
            params = precision.params(merge(trainable, frozen))
            with (
                part.freeze_norms(),
                precision.norms_in_float32(),
                replicas.layers(len(given)),
            ):
                outputs, model_state = model.apply(
                    {'params': params, **model_state},
                    precision.inputs(given),
                    train=True,
                    rngs={'dropout': key},
                    mutable=list(model_state),
                )
            sums = totals(task.values(outputs, batch, task.smoothing or 0.0), counted)
            return sums['loss'], (sums, model_state)

        grads, sums, model_state = _gradients(
            loss, trainable, state.model_state, whole, dropout_key, accumulate
        )
        grads, sums = replicas.sum((grads, sums))
        weight = sums.pop(WEIGHT)
        grads, metrics = jax.tree.map(lambda x: x / weight, (grads, sums))
        metrics['grad_norm'] = optax.global_norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        metrics['param_norm'] = optax.global_norm(trainable)
        state = state.replace(
            step=state.step + 1,
            params=merge(trainable, frozen),
            model_state=model_state,
            opt_state=opt_state,
            ema=_average(state, trainable, ema),
        )
        return state, metrics

    return train_step


def _gradients(
    loss: Callable,
    trainable: Any,
    model_state: Any,
    batch: tuple[jax.Array, Batch],
    key: jax.Array,
    accumulate: int,
) -> tuple[Any, dict[str, jax.Array], Any]:
    """(gradients, sums of metrics, model_state) of a whole batch, taken in so many parts."""
    gradient = jax.grad(loss, has_aux=True)
    if accumulate == 1:
        grads, (sums, model_state) = gradient(trainable, model_state, (*batch, None), key)
        return grads, sums, model_state

    def add(carry: tuple[Any, Any], part: tuple[MicroBatch, jax.Array]):
        total, model_state = carry
        micro, number = part
        # Without it each part would drop the same units.
        own_key = jax.random.fold_in(key, number)
        grads, (sums, model_state) = gradient(trainable, model_state, micro, own_key)
        return (jax.tree.map(jnp.add, total, grads), model_state), sums

    zero = jax.tree.map(jnp.zeros_like, trainable)
    parts = _micro_batches(batch, accumulate)
    (grads, model_state), sums = jax.lax.scan(
        add, (zero, model_state), (parts, jnp.arange(accumulate))
    )
    return grads, jax.tree.map(lambda x: x.sum(0), sums), model_state


def _micro_batches(batch: tuple[jax.Array, Batch], count: int) -> MicroBatch:
    """(inputs, batch, which rows count), each with an axis of parts in front.

    Part `i` has rows `i`, `i + count`, ...: so each device keeps the rows that it has. Where they
    do not come out even, rows that count for nothing fill up.
    """
    rows = len(batch[0])
    spare = -rows % count

    def deal(x: jax.Array) -> jax.Array:
        # The last row again, since a row of zeros may be something that no model has to take.
        x = jnp.concatenate([x, jnp.repeat(x[-1:], spare, 0)]) if spare else x
        return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)

    counted = (jnp.arange(rows + spare) < rows).astype(jnp.float32)
    return (*jax.tree.map(deal, batch), counted.reshape(-1, count).swapaxes(0, 1))


def several_steps(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The same step over batches [steps, batch, ...], in a loop on the device.

    Its metrics are float32 [steps].
    """
    return lambda state, batches: jax.lax.scan(train_step, state, batches)


def make_eval_step(
    model,
    task: Task,
    inputs: Inputs,
    part: Partition,
    precision: Precision = FLOAT32,
    replicas: Replicas = WHOLE,
) -> Callable[[TrainState, Batch], dict[str, jax.Array]]:
    """The step `(state, batch) -> rows`, arrays [batch, ...] by name, as `Task.rows` makes them."""
    outputs = _make_outputs(model, inputs, part, precision, replicas)
    return lambda state, batch: task.rows(outputs(state, batch), batch)


def make_predict_step(
    model, prediction: Prediction, inputs: Inputs, part: Partition, precision: Precision = FLOAT32
) -> Callable[[TrainState, Batch], dict[str, jax.Array]]:
    """The step `(state, batch) -> arrays [batch, ...] by name`, those of `Prediction.arrays`."""
    outputs = _make_outputs(model, inputs, part, precision, WHOLE)
    return lambda state, batch: prediction.arrays(outputs(state, batch))


def _make_outputs(
    model, inputs: Inputs, part: Partition, precision: Precision, replicas: Replicas
) -> Callable[[TrainState, Batch], jax.Array]:
    """`(state, batch) -> outputs` of the averaged parameters, where there are any."""

    def outputs(state: TrainState, batch: Batch) -> jax.Array:
        given = precision.inputs(inputs.evaluate(batch))
        variables = {'params': precision.params(state.averaged_params(part)), **state.model_state}
        with precision.norms_in_float32(), replicas.layers(len(given)):
            return model.apply(variables, given, train=False)

    return outputs


def _average(state: TrainState, trainable: Any, decay: float) -> Any:
    if not decay:
        return state.ema
    # Without the second term the average would remember the initial parameters for 1/(1-decay)
    # steps; with it, it is the plain mean of the steps so far until that window is full.
    weight = jnp.maximum(1.0 - decay, 1.0 / (state.step + 1.0))
    return optax.incremental_update(trainable, state.ema, weight)
