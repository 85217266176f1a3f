"""The train step and the evaluation step: pure functions, made once from plain parts.

Only the trainable parameters are differentiated. So frozen parameters cost no backward pass, hold
no optimizer state and take no part in the gradient norm, whatever reads that norm.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtrain.partition import Partition, merge
from jaxtrain.state import TrainState
from jaxtrain.tasks import Task, average

Batch = dict[str, jax.Array]


def make_train_step(
    model, task: Task, tx: optax.GradientTransformation, part: Partition, ema: float = 0.0
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The step `(state, batch) -> (state, metrics)`.

    Args:
      model: a Linen module called as `model.apply(variables, inputs, train=...)`.
      task: loss, metrics, and how a batch reaches the model.
      tx: optimizer over the trainable parameters.
      part: which parameters are trained.
      ema: decay of the moving average; 0 keeps none.

    Returns:
      A function of a TrainState and a batch, arrays by name as `Source.features` tells; its metrics
      are float32 scalars: the task's own (means over the batch), `grad_norm` before clipping, and
      `param_norm` after the update, both over the trainable parameters.
    """

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        augment_key, dropout_key = jax.random.split(key)
        inputs = task.train_inputs(batch, augment_key)
        trainable, frozen = part.split(state.params)

        def loss(trainable: Any):
            variables = {'params': merge(trainable, frozen), **state.model_state}
            with part.freeze_norms():
                outputs, model_state = model.apply(
                    variables,
                    inputs,
                    train=True,
                    rngs={'dropout': dropout_key},
                    mutable=list(state.model_state),
                )
            metrics = average(task.metrics(outputs, batch, train=True))
            return metrics['loss'], (metrics, model_state)

        grads, (metrics, model_state) = jax.grad(loss, has_aux=True)(trainable)
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


def several_steps(
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The same step over batches [steps, batch, ...], in a loop on the device.

    Its metrics are float32 [steps].
    """
    return lambda state, batches: jax.lax.scan(train_step, state, batches)


def make_eval_step(
    model, task: Task, part: Partition
) -> Callable[[TrainState, Batch], dict[str, jax.Array]]:
    """The step `(state, batch) -> metrics`, one float32 value per example (shape [batch])."""

    def eval_step(state: TrainState, batch: Batch):
        return task.metrics(_outputs(model, task, part, state, batch), batch, train=False)

    return eval_step


def make_predict_step(
    model, task: Task, part: Partition
) -> Callable[[TrainState, Batch], dict[str, jax.Array]]:
    """The step `(state, batch) -> {'probabilities': float32 [batch, classes]}`."""

    def predict_step(state: TrainState, batch: Batch):
        return {'probabilities': task.probabilities(_outputs(model, task, part, state, batch))}

    return predict_step


def _outputs(model, task: Task, part: Partition, state: TrainState, batch: Batch) -> jax.Array:
    variables = {'params': state.averaged_params(part), **state.model_state}
    return model.apply(variables, task.eval_inputs(batch), train=False)


def _average(state: TrainState, trainable: Any, decay: float) -> Any:
    if not decay:
        return state.ema
    # Without the second term the average would remember the initial parameters for 1/(1-decay)
    # steps; with it, it is the plain mean of the steps so far until that window is full.
    weight = jnp.maximum(1.0 - decay, 1.0 / (state.step + 1.0))
    return optax.incremental_update(trainable, state.ema, weight)
