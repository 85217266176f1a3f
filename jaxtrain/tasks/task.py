"""The contract of a task: all that is particular to a kind of label, declared in one place.

Everything is per example, so that the train step may average over a batch and an evaluation may
count every example exactly once, whatever the batch size. Where examples do not count alike (a
window of text counts as its tokens), one of their values is `WEIGHT`, and the others are averaged
by it.
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
    """How a prediction about one example is made and written.

    Attributes:
      arrays: model outputs -> arrays by name, [batch, ...].
      line: (the arrays of one example, class names, how many of them to list) -> what a line of
        predictions.jsonl has besides the place of the example.
      columns: the keys of a line that the printed table shows.
    """

    arrays: Callable[[jax.Array], dict[str, jax.Array]]
    line: Callable[[Mapping[str, np.ndarray], Sequence[str], int], dict[str, Any]]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """What a task declares; plain functions, all pure.

    Attributes:
      label: the meaning of the labels, which the data must have a feature of: CLASS, CLASS_SET,
        NUMBERS or NEXT_TOKENS. A batch has them under `features.ARRAYS[label]`.
      outputs: source -> width of the model's output. Raises a UserError if the task does not take
        the labels of the source.
      values: (model outputs, batch, label smoothing) -> float32 [batch] by name, to be averaged
        over the examples of a training step. One of them is 'loss', whose gradient is taken. A
        task that can be trained on mixed examples reads their labels by `mixing.mixed`.
      rows: (model outputs, batch) -> arrays [batch, ...] by name: what an evaluation keeps of each
        example, and what test.npz holds. They may be scores and labels.
      summarize: rows of a whole split -> its metrics by name, 'loss' among them.
      metrics: those that `summarize` returns, in the order in which they are drawn.
      main: the name of the metric that chooses checkpoints and that a comparison is about.
      prediction: of an example; None where a prediction is the continuation of a prompt.
      smoothing: `config.task.label_smoothing`; None for a task that takes none.
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
        """The metric of that name. KeyError if the task has none."""
        return {metric.name: metric for metric in self.metrics}[name]


def means(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each value over all examples, each counting as its weight if there is one."""
    weight = rows.get(WEIGHT)
    return {
        name: float(np.average(v.astype(np.float64), weights=weight))
        for name, v in rows.items()
        if name != WEIGHT
    }


def totals(values: Mapping[str, jax.Array], counted: jax.Array | None = None) -> dict:
    """Sums over the examples of a batch, each counting as its weight, and the sum of the weights.

    Args:
      values: float32 [batch] by name, as `Task.values` returns them; without `WEIGHT` among them
        each example counts as 1.
      counted: float32 [batch], 0 for rows that fill up the batch and count for nothing; None counts
        all.

    Returns:
      float32 scalars by the same names and `WEIGHT`.
    """
    weight = values.get(WEIGHT, jnp.ones_like(values['loss']))
    weight = weight if counted is None else weight * counted
    sums = {name: jnp.sum(v * weight) for name, v in values.items() if name != WEIGHT}
    return {**sums, WEIGHT: jnp.sum(weight)}
