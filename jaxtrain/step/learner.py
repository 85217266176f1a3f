"""A learner: model, task, trainable parameters and precision, and the steps that they define.

Models are created only here, whether they are trained, evaluated, or inspected for the shapes of
their parameters. The steps are pure functions. The loss is differentiated with respect to the
trainable parameters only, so that frozen parameters need no backward pass, have no optimizer state,
and do not contribute to the gradient norm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtrain.data.features import Feature
from jaxtrain.data.on_device.inputs import Inputs, make_inputs
from jaxtrain.data.sources.source import Source
from jaxtrain.models import check_inputs, make_model, split_scan
from jaxtrain.models.parts.family import Family
from jaxtrain.parallel.mesh import PMAP_AXIS
from jaxtrain.parallel.replicas import WHOLE, Replicas
from jaxtrain.params.partition import FROZEN, Partition, make_partition, merge
from jaxtrain.step.gradients import Batch, MicroBatch, gradients
from jaxtrain.step.precision import Precision, make_precision
from jaxtrain.step.state import TrainState, Update, abstract_inputs, abstract_variables
from jaxtrain.tasks.task import WEIGHT, Task, totals
from jaxtrain.tasks.tasks import make_task

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
ReadStep = Callable[[TrainState, Batch], dict[str, jax.Array]]


class Variables(NamedTuple):
    """The variables of a model, as nested ShapeDtypeStructs."""

    params: Any
    model_state: Any


@dataclass(frozen=True)
class Learner:
    """Everything that defines a step, except for the optimizer.

    Attributes:
      model: a Linen module called as `model.apply(variables, inputs, train=...)`.
      task: the loss, the values per example, and the metrics.
      inputs: functions that turn a batch into model inputs.
      part: which parameters are trained.
      precision: the dtypes that the model computes in.
      variables: the shapes and dtypes of the model's variables.
    """

    model: Family
    task: Task
    inputs: Inputs
    part: Partition
    precision: Precision
    variables: Variables

    def train_step(self, update: Update, replicas: Replicas = WHOLE) -> TrainStep:
        """The step `(state, batch) -> (state, metrics)`.

        Args:
          update: how gradients update the parameters.
          replicas: operations across the devices that run the step.

        Returns:
          A function of a TrainState and a batch, whose arrays are those of `Source.features`. Its
          metrics are float32 scalars: those of the task (means over the batch), `grad_norm` before
          clipping, and `param_norm` after the update, both over the trainable parameters.
        """

        def train_step(state: TrainState, batch: Batch):
            key = jax.random.fold_in(jax.random.key(state.seed), state.step)
            augment_key, dropout_key = jax.random.split(key)
            whole = replicas.local_rows(self.inputs.train(replicas.gather(batch), augment_key))
            trainable, frozen = self.part.split(state.params)
            gradient = gradients(self._loss(frozen, replicas), update.accumulate)
            grads, sums, model_state = gradient(trainable, state.model_state, whole, dropout_key)
            grads, sums = replicas.sum((grads, sums))
            weight = sums.pop(WEIGHT)
            grads, metrics = jax.tree.map(lambda x: x / weight, (grads, sums))
            metrics['grad_norm'] = optax.global_norm(grads)
            updates, opt_state = update.tx.update(grads, state.opt_state, trainable)
            trainable = optax.apply_updates(trainable, updates)
            metrics['param_norm'] = optax.global_norm(trainable)
            state = state.replace(
                step=state.step + 1,
                params=merge(trainable, frozen),
                model_state=model_state,
                opt_state=opt_state,
                ema=_average(state, trainable, update.ema),
            )
            return state, metrics

        return train_step

    def eval_step(self, replicas: Replicas = WHOLE) -> ReadStep:
        """The step `(state, batch) -> rows`, arrays [batch, ...] by name, see `Task.rows`."""
        outputs = self._outputs(replicas)
        return lambda state, batch: self.task.rows(outputs(state, batch), batch)

    def predict_step(self) -> ReadStep:
        """The step `(state, batch) -> arrays [batch, ...] by name`, see `Prediction.arrays`."""
        outputs, prediction = self._outputs(WHOLE), self.task.prediction
        assert prediction is not None  # else `predict` continues prompts
        return lambda state, batch: prediction.arrays(outputs(state, batch))

    def _loss(self, frozen: Any, replicas: Replicas) -> Callable:
        """The loss of a part of a batch, as a function of the trainable parameters."""

        def loss(trainable: Any, model_state: Any, micro: MicroBatch, key: jax.Array):
            inputs, batch, counted = micro
            params = self.precision.params(merge(trainable, frozen))
            with (
                self.part.freeze_norms(),
                self.precision.norms_in_float32(),
                replicas.layers(len(inputs)),
            ):
                outputs, model_state = self.model.apply(
                    {'params': params, **model_state},
                    self.precision.inputs(inputs),
                    train=True,
                    rngs={'dropout': key},
                    mutable=list(model_state),
                )
            values = self.task.values(outputs, batch, self.task.smoothing or 0.0)
            sums = totals(values, counted)
            return sums['loss'], (sums, model_state)

        return loss

    def _outputs(self, replicas: Replicas) -> Callable[[TrainState, Batch], jax.Array]:
        """`(state, batch) -> outputs`, computed with the averaged parameters if there are any."""

        def outputs(state: TrainState, batch: Batch) -> Any:
            inputs = self.precision.inputs(self.inputs.evaluate(batch))
            params = self.precision.params(state.averaged_params(self.part))
            with self.precision.norms_in_float32(), replicas.layers(len(inputs)):
                return self.model.apply(
                    {'params': params, **state.model_state}, inputs, train=False
                )

        return outputs


def make_learner(cfg, source: Source, parallel: str = 'jit') -> Learner:
    """The learner that a config describes.

    Args:
      cfg: the resolved config.
      source: a source with the features and classes of the training data.
      parallel: the transformation that compiles the train step, 'jit' or 'pmap'.

    Raises:
      UserError: an invalid task, model, group or precision, or one that does not fit the data.
    """
    task, inputs = make_task(cfg, source), make_inputs(cfg.data, source)
    model = make_model(cfg.model, task.outputs(source))
    check_inputs(model, source.model_input.meaning, source.tokenizer)
    variables = Variables(*abstract_variables(model, source.model_input))
    part = make_partition(cfg, *variables)
    model = split_scan(model, {p: group != FROZEN for p, group in part.groups.items()})
    if parallel == 'pmap' and variables.model_state:
        model = model.clone(axis=PMAP_AXIS)
    precision = make_precision(cfg, model, abstract_inputs(source.model_input))
    return Learner(model, task, inputs, part, precision, variables)


def make_network(cfg, outputs: int, inputs: Feature) -> tuple[Family, Variables]:
    """A model without a task, and its variables.

    Args:
      cfg: `config.model`.
      outputs: width of its output.
      inputs: the input feature.

    Raises:
      UserError: an unknown or invalid model, or one that cannot read such examples.
    """
    model = make_model(cfg, outputs)
    return model, Variables(*abstract_variables(model, inputs))


def several_steps(train_step: TrainStep) -> TrainStep:
    """A train step that loops over batches [steps, batch, ...] on the device.

    Its metrics are float32 [steps].
    """
    return lambda state, batches: jax.lax.scan(train_step, state, batches)


def _average(state: TrainState, trainable: Any, decay: float) -> Any:
    if not decay:
        return state.ema
    # Without the second term, the initial parameters would dominate for 1/(1-decay) steps. With it,
    # the average is the plain mean of all steps so far until then.
    weight = jnp.maximum(1.0 - decay, 1.0 / (state.step + 1.0))
    return optax.incremental_update(trainable, state.ema, weight)
