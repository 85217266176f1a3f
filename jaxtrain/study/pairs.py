"""Differences between arms, paired by seed and test example, and which of them are measurable.

The p-value of a difference is the level at which its interval begins to exclude zero. Several pairs
are corrected for by Holm's method: the chance that any pair of equal arms counts as different is at
most 5%.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from jaxtrain.runs.metric import Metric
from jaxtrain.study.stats import LEVEL, Interval, Parts, parts

# With fewer test examples, a comparison gives no verdict.
FEWEST_EXAMPLES = 20
LEAST_P = 1e-12


@dataclass(frozen=True)
class Pair:
    """The test metric of `first` minus that of `second`, paired by seed and test example.

    Attributes:
      first, second: names of the arms.
      difference: the mean with its 95% interval.
      p: p-value, corrected by Holm's method for all pairs of the comparison.
      differs: whether the arms differ measurably; None if the comparison gives no verdict.
      parts: the variance of the difference.
    """

    first: str
    second: str
    difference: Interval
    p: float
    differs: bool | None
    parts: Parts

    def to_json(self) -> dict[str, Any]:
        """The pair in compare.json."""
        names = ('first', 'second', 'p', 'differs')
        return {**{k: getattr(self, k) for k in names}, 'difference': vars(self.difference)}

    def against(self, arm: str) -> tuple[str, Interval]:
        """The other arm, and the difference as its metric minus that of `arm`."""
        d = self.difference
        if arm == self.second:
            return self.first, d
        return self.second, Interval(-d.mean, -d.high, -d.low)


def pairs_of(scores: Mapping[str, np.ndarray], metric: Metric) -> list[Pair]:
    """All pairs of arms, the later arm first.

    Args:
      scores: the metric by arm, numbers [seeds, examples].
      metric: the metric.
    """
    seeds, examples = next(iter(scores.values())).shape
    known = seeds > 1 and examples >= FEWEST_EXAMPLES
    names = list(combinations(scores, 2))
    measured = [differences(scores[b] - scores[a], metric.percent) for a, b in names]
    corrected = holm(np.array([float(p) for *_, p in measured]))
    return [
        Pair(
            first=later,
            second=earlier,
            difference=Interval(*map(float, ends)),
            p=float(p),
            differs=bool(p < 1 - LEVEL) if known else None,
            parts=split,
        )
        for (earlier, later), (split, ends, _), p in zip(names, measured, corrected, strict=True)
    ]


def differences(scores: np.ndarray, share: bool) -> tuple[Parts, np.ndarray, np.ndarray]:
    """Differences of two arms with their intervals and p-values.

    Args:
      scores: differences [..., seeds, examples].
      share: whether they are those of two shares, -1, 0 or 1, and their intervals have these ends.

    Returns:
      The parts of the variance; mean, low and high [..., 3]; p-values [...].
    """
    mean = np.asarray(np.mean(scores, (-2, -1), dtype=np.float64))
    if not share:
        p = parts(scores)
        half = p.banerjee()
        return p, np.stack([mean, mean - half, mean + half], -1), p_value(p, abs(mean))
    p = _share_parts(scores)
    # On this scale no interval leaves -1 and 1.
    middle, slope = np.arctanh(p.mean), 1 - p.mean**2
    half = p.banerjee() / slope
    low, high = np.minimum(np.tanh(middle - half), mean), np.maximum(np.tanh(middle + half), mean)
    return p, np.stack([mean, low, high], -1), p_value(p, abs(middle) * slope)


def p_value(p: Parts, distance: np.ndarray) -> np.ndarray:
    """1 - level of the interval whose end is at `distance` from its middle, at least `LEAST_P`."""
    low = np.full(np.shape(distance), np.log(LEAST_P))
    high = np.zeros_like(low)
    for _ in range(40):
        middle = (low + high) / 2
        beyond = p.banerjee(-np.expm1(middle)) > distance
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    return np.exp(high)


def holm(p: np.ndarray) -> np.ndarray:
    """P-values [..., pairs] corrected for their number.

    Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    order = np.argsort(p, -1)
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, -1), 1), -1)
    return adjusted


def _share_parts(scores: np.ndarray) -> Parts:
    """The variance of a difference of shares.

    Two examples are added, each of which one of the arms wins (Bonett and Price, Journal of
    Educational and Behavioral Statistics 37, 2012), because none of a few examples may differ by
    chance. Seeds may look more equal than they are: their means vary at least by the residual
    variance, and are multiples of 1 / examples.
    """
    ends = np.broadcast_to([1.0, -1.0], (*scores.shape[:-1], 2))
    p = parts(np.concatenate([scores, ends], -1))
    if p.seeds == 1:
        return p
    return replace(p, seed=np.maximum(p.seed, p.noise) + 1 / (4 * p.seeds * p.examples**2))
