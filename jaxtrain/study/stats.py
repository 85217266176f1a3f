"""Intervals for metrics that were measured with several seeds on one test set.

A score is a table [seeds, examples]. Its mean varies with the seeds (initial parameters, order of
the data) and with the sample of test examples. The interval covers both: a difference that could
vanish with other seeds or other examples is not measurable. The two are crossed random effects, and
the variance of the mean is estimated by the usual analysis of variance (Searle, Casella, McCulloch,
Variance Components, 1992, ch. 4).

Means use Student's t with Satterthwaite's degrees of freedom. A share lies between 0 and 1, and so
does its interval, which is that of Clopper and Pearson for the number of independent examples that
would give the same variance (Korn and Graubard, Survey Methodology 24, 1998).
tests/benchmarks/README.md reports how often these intervals contain the true value.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
# Weight of Banerjee's squared half-width in that of a share; the rest is Satterthwaite's.
BANERJEE = 0.4


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Parts:
    """The variance of the mean of a table [seeds, examples], in parts.

    The numbers are floats, or arrays if there are several tables.

    Attributes:
      mean: the mean of the table.
      seed: variance of the means by seed, divided by the number of seeds; 0 for one seed.
      example: variance of the means by example, divided by the number of examples.
      noise: residual variance divided by the number of cells; `seed` and `example` each contain it
        once. 0 for one seed.
      seeds, examples: the shape of the table.
    """

    mean: Any
    seed: Any
    example: Any
    noise: Any
    seeds: int
    examples: int

    @property
    def shared(self) -> Any:
        """The part that all seeds share, because they are tested on the same examples."""
        return np.maximum(self.example - self.noise, 0.0)

    def banerjee(self, level: Any = LEVEL) -> Any:
        """Half the width of an interval that contains the true mean at least as often as `level`.

        The squared half-widths of the two parts, each with Student's t for its own degrees of
        freedom, are added (Banerjee, Biometrika 48, 1961).
        """
        seed = _t(level, self.seeds - 1) ** 2 * self.seed if self.seeds > 1 else 0.0
        return np.sqrt(seed + _t(level, self.examples - 1) ** 2 * self.shared)

    def satterthwaite(self) -> Any:
        """Half the width of the 95% interval with one t; it falls short with two seeds."""
        if self.seeds == 1:
            return self.banerjee()
        variance = self.seed + self.shared
        terms = self.example**2 + self.noise**2 / (self.seeds - 1)
        terms = np.where(self.shared > 0, terms, 0.0) / (self.examples - 1)
        terms += self.seed**2 / (self.seeds - 1)
        freedom = variance**2 / np.where(terms > 0, terms, 1.0)
        freedom = np.clip(freedom, self.seeds - 1, max(self.seeds, self.examples) - 1)
        return _t(LEVEL, freedom) * np.sqrt(variance)


def parts(scores: np.ndarray) -> Parts:
    """Splits the variance of the mean of `scores`, numbers [..., seeds, examples].

    For paired differences, `scores` are those of one arm minus those of another on the same seeds
    and examples. Nothing is known of how much examples vary if there is only one.
    """
    scores = np.asarray(scores, np.float64)
    seeds, examples = scores.shape[-2:]
    if examples == 1:
        mean = scores.mean((-2, -1))
        return Parts(mean, 0 * mean, mean + np.inf, 0 * mean, seeds, 2)
    by_seed, by_example = scores.mean(-1, keepdims=True), scores.mean(-2, keepdims=True)
    mean = scores.mean((-2, -1))
    seed = noise = np.zeros(mean.shape)
    if seeds > 1:
        seed = by_seed.var((-2, -1), ddof=1) / seeds
        residual = scores - by_seed - by_example + mean[..., None, None]
        freedom = (seeds - 1) * (examples - 1)
        noise = (residual**2).sum((-2, -1)) / freedom / (seeds * examples)
    example = by_example.var((-2, -1), ddof=1) / examples
    return Parts(mean, seed, example, noise, seeds, examples)


def interval(scores: np.ndarray) -> Interval:
    """The mean of `scores`, numbers [seeds, examples], with its interval over seeds and examples.

    With one seed the interval covers the choice of examples alone, and one example has an interval
    without bounds.
    """
    if scores.shape[1] == 1:
        return Interval(float(np.mean(scores)), -np.inf, np.inf)
    p = parts(scores)
    if p.seeds == 1:
        half = p.banerjee()
        return Interval(float(p.mean), float(p.mean - half), float(p.mean + half))
    # Each part contains the residual variance once; the mean contains it once in total.
    variance = max(p.seed + p.example - p.noise, p.seed, p.example)
    terms = p.seed**2 / (p.seeds - 1) + p.example**2 / (p.examples - 1)
    half = _t(LEVEL, variance**2 / terms) * np.sqrt(variance) if terms else 0.0
    return Interval(float(p.mean), float(p.mean - half), float(p.mean + half))


def share_interval(scores: np.ndarray) -> Interval:
    """The same for a share: `scores` are 0 or 1, and the interval lies between 0 and 1."""
    mean, low, high = map(float, share_bounds(scores))
    return Interval(mean, low, high)


def share_bounds(scores: np.ndarray) -> tuple[Any, Any, Any]:
    """The shares of `scores`, 0 or 1 [..., seeds, examples], and their lower and upper bounds.

    Two seeds of equal accuracy are no evidence that all seeds are equal, so the number of
    independent examples has an upper limit, at which the variance is that of half an error per
    seed. If all scores are equal, the seeds may agree on each example, and count as one.
    """
    seeds, examples = scores.shape[-2:]
    mean = np.mean(scores, (-2, -1), dtype=np.float64)
    spread = mean * (1 - mean)
    number = np.full(mean.shape, float(examples))
    if examples > 1:
        p = parts(scores)
        square = BANERJEE * p.banerjee() ** 2 + (1 - BANERJEE) * p.satterthwaite() ** 2
        most = 2 * seeds * examples**2 * spread
        z = stats.norm.ppf((1 + LEVEL) / 2)
        limited = np.minimum(most, spread * z**2 / np.maximum(square, 1e-300))
        number = np.where(spread > 0, limited, number)
    tail, right, wrong = (1 - LEVEL) / 2, mean * number, (1 - mean) * number
    low = np.where(mean > 0, stats.beta.ppf(tail, np.maximum(right, 1e-300), wrong + 1), 0.0)
    high = np.where(mean < 1, stats.beta.isf(tail, right + 1, np.maximum(wrong, 1e-300)), 1.0)
    return mean, low, high


def _t(level: Any, freedom: Any) -> Any:
    """The quantile of Student's t that belongs to a two-sided interval."""
    return stats.t.isf((1 - level) / 2, freedom)
