"""Intervals for metrics that were measured with several seeds on one test set.

A score is a table [seeds, examples]. Its mean varies with the seeds (initial parameters, order of
the data) and with the sample of test examples. The interval covers both: a difference that could
vanish with other seeds or other examples is not measurable. The two are crossed random effects, and
the variance of the mean is estimated by the usual analysis of variance (Searle, Casella, McCulloch,
Variance Components, 1992, ch. 4), with Satterthwaite's degrees of freedom.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


def interval(scores: np.ndarray) -> Interval:
    """The mean of `scores`, float [seeds, examples], with its interval over seeds and examples.

    With one seed the interval covers the choice of examples alone. For paired differences, `scores`
    are those of one arm minus those of another on the same seeds and examples.
    """
    scores = np.asarray(scores, np.float64)
    seeds, examples = scores.shape
    mean = scores.mean()
    by_seed, by_example = scores.mean(1), scores.mean(0)
    example_part = by_example.var(ddof=1) / examples
    if seeds == 1:
        variance, freedom = example_part, examples - 1
    else:
        seed_part = by_seed.var(ddof=1) / seeds
        # Each part contains the residual variance once; the mean contains it once in total.
        residual = scores - by_seed[:, None] - by_example[None] + mean
        noise = (residual**2).sum() / ((seeds - 1) * (examples - 1)) / (seeds * examples)
        variance = max(seed_part + example_part - noise, seed_part, example_part)
        parts = seed_part**2 / (seeds - 1) + example_part**2 / (examples - 1)
        freedom = variance**2 / parts if parts else examples - 1
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance) if variance else 0.0
    return Interval(float(mean), float(mean - half), float(mean + half))
