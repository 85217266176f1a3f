"""A metric with its direction, and the checkpoint that the val metrics choose by it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number about a whole split.

    Attributes:
      name: in metrics.jsonl, result.json and the tables.
      higher_is_better: whether more of it is better.
      percent: whether it is a share from 0 to 1 that tables show in percent, and differences of
        it in points.
      is_mean: whether it is the mean of what the rows of an evaluation hold under its name, so
        that a comparison can put an interval on it.
    """

    name: str
    higher_is_better: bool
    percent: bool = False
    is_mean: bool = True

    def better(self, value: float) -> float:
        """The value with its sign chosen so that more is better."""
        return value if self.higher_is_better else -value

    def text(self, value: float, sign: str = '') -> str:
        """The value as tables show it, without its unit; `sign` is that of a format, '' or '+'."""
        return f'{100 * value:{sign}.1f}' if self.percent else f'{value:{sign}.4g}'


def best_of(
    val: Mapping[int, Mapping[str, float]], metric: Metric, steps: Iterable[int]
) -> int | None:
    """The first of `ranked`, None if there is none."""
    return next(iter(ranked(val, metric, steps)), None)


def ranked(
    val: Mapping[int, Mapping[str, float]], metric: Metric, steps: Iterable[int]
) -> list[int]:
    """The steps that have a val metric, the best first; of equal ones the later is first.

    Args:
      val: metrics by step.
      metric: what decides.
      steps: to choose from.
    """
    known = [step for step in steps if metric.name in val.get(step, {})]
    return sorted(
        known, key=lambda step: (metric.better(val[step][metric.name]), step), reverse=True
    )
