"""A metric with its direction, and the selection of checkpoints by it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number computed from a whole split.

    Attributes:
      name: its name in metrics.jsonl, result.json and the tables.
      higher_is_better: whether higher values are better.
      percent: whether it is a fraction from 0 to 1 that tables show in percent, and its
        differences in percentage points.
      is_mean: whether it is the mean of the values that the rows of an evaluation have under its
        name, so that a comparison can compute an interval for it.
    """

    name: str
    higher_is_better: bool
    percent: bool = False
    is_mean: bool = True

    def better(self, value: float) -> float:
        """Return the value with its sign chosen so that higher is better."""
        return value if self.higher_is_better else -value

    def text(self, value: float, sign: str = '') -> str:
        """Format the value as in tables, without its unit; `sign` is '' or '+', as in a format."""
        return f'{100 * value:{sign}.1f}' if self.percent else f'{value:{sign}.4g}'


def best_of(
    val: Mapping[int, Mapping[str, float]], metric: Metric, steps: Iterable[int]
) -> int | None:
    """Return the first of `ranked`, or None if it is empty."""
    return next(iter(ranked(val, metric, steps)), None)


def ranked(
    val: Mapping[int, Mapping[str, float]], metric: Metric, steps: Iterable[int]
) -> list[int]:
    """Return the steps that have the val metric, best first; among equal ones the later is first.

    Args:
      val: metrics by step.
      metric: the metric that decides.
      steps: the steps to choose from.
    """
    known = [step for step in steps if metric.name in val.get(step, {})]
    return sorted(
        known, key=lambda step: (metric.better(val[step][metric.name]), step), reverse=True
    )
