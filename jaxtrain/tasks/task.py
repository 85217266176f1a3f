"""The contract of a task: everything that depends on the kind of label, declared in one place.

Everything is per example, so that the train step can average over a batch and an evaluation counts
every example exactly once, for any batch size. If examples have different weights (a window of text
weighs as many as its tokens), one of the values is `WEIGHT`, and the others are averaged with it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.features import CLASS, CLASS_SET
from jaxtrain.data.sources.source import Source
from jaxtrain.runs.metric import Metric

Batch = dict[str, jax.Array]
WEIGHT = 'weight'

LOSS = Metric('loss', higher_is_better=False)


@dataclass(frozen=True)
class Prediction:
    """How predictions are computed and written.

    Attributes:
      arrays: model outputs -> arrays by name, [batch, ...].
      line: (the arrays of one example, class names, number of classes to list) -> the fields of a
        line in predictions.jsonl, except for the location of the example.
      columns: the fields that the printed table shows.
    """

    arrays: Callable[[jax.Array], dict[str, jax.Array]]
    line: Callable[[Mapping[str, np.ndarray], Sequence[str], int], dict[str, Any]]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """What a task declares: plain data and pure functions.

    Attributes:
      label: the meaning of the label feature that the data must have: CLASS, CLASS_SET, NUMBERS or
        NEXT_TOKENS. Its array in a batch is named `features.ARRAYS[label]`.
      outputs: source -> width of the model's output. Raises a UserError if the labels of the
        source do not fit the task.
      values: (model outputs, batch, label smoothing) -> float32 [batch] by name, which are
        averaged over the examples of a training step. One of them is 'loss', which is
        differentiated. A task that supports mixed examples reads labels with `mixing.mixed`.
      rows: (model outputs, batch) -> arrays [batch, ...] by name, which an evaluation collects and
        test.npz contains. They can be scores and labels.
      summarize: rows of a whole split -> metrics by name, including 'loss'.
      metrics: the metrics that `summarize` returns, in the order of the curves.
      main: the name of the metric that selects checkpoints and decides comparisons.
      prediction: how predictions are made; None if they are continuations of prompts.
      smoothing: `config.task.label_smoothing`; None if the task does not support it.
    """

    label: str
    outputs: Callable[[Source], int]
    values: Callable[[jax.Array, Batch, float], dict[str, jax.Array]]
    rows: Callable[[jax.Array, Batch], dict[str, jax.Array]]
    summarize: Callable[[Mapping[str, np.ndarray]], dict[str, float]]
    metrics: tuple[Metric, ...]
    main: str
    prediction: Prediction | None
    smoothing: float | None = 0.0

    @property
    def has_classes(self) -> bool:
        """Whether the labels are classes, so that the data has a name for each of them."""
        return self.label in (CLASS, CLASS_SET)

    @property
    def names(self) -> list[str]:
        """The names of the metrics."""
        return [metric.name for metric in self.metrics]

    def metric(self, name: str) -> Metric:
        """The metric of that name. Raises a KeyError if the task does not have it."""
        return {metric.name: metric for metric in self.metrics}[name]


def means(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each value over all examples, weighted if `WEIGHT` is one of the values."""
    weight = rows.get(WEIGHT)
    return {
        name: float(np.average(v.astype(np.float64), weights=weight))
        for name, v in rows.items()
        if name != WEIGHT
    }


def totals(values: Mapping[str, jax.Array], counted: jax.Array | None = None) -> dict:
    """Weighted sums over the examples of a batch, and the sum of the weights.

    Args:
      values: float32 [batch] by name, as returned by `Task.values`; without `WEIGHT`, the weight
        of each example is 1.
      counted: float32 [batch], 0 for padding rows, which do not count; None counts all rows.

    Returns:
      float32 scalars by the same names and `WEIGHT`.
    """
    weight = values.get(WEIGHT, jnp.ones_like(values['loss']))
    weight = weight if counted is None else weight * counted
    sums = {name: jnp.sum(v * weight) for name, v in values.items() if name != WEIGHT}
    return {**sums, WEIGHT: jnp.sum(weight)}
