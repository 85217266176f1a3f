"""How often the intervals of a comparison contain the true value, and how often equal arms differ.

    python -m tests.benchmarks.coverage --draws=2000

simulates comparisons in which the logit of an example's chance to be right is the sum of a
constant, a normal effect of the seed, and a normal effect of the example. It prints a table that
README.md summarises.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.special import expit, logit

from jaxtrain.study.pairs import differences, holm
from jaxtrain.study.stats import LEVEL, share_bounds

SEEDS = (2, 3, 5, 10)
ACCURACIES = (0.5, 0.9, 0.99, 1.0)
EXAMPLES = (50, 100, 300, 500, 1000, 2000)
DEVIATIONS = (0.0, 0.05, 0.1, 0.2, 0.35)
CHUNK = 4_000_000  # scores that are drawn at a time


@dataclass(frozen=True)
class Design:
    """A comparison to simulate.

    Attributes:
      accuracy: the chance to be right without effects.
      seeds, examples: the shape of a table of scores.
      deviation: standard deviation of the seeds' effects on the logit.
      difficulty: standard deviation of the examples' effects on the logit.
    """

    accuracy: float
    seeds: int
    examples: int
    deviation: float
    difficulty: float = 0.0

    @property
    def level(self) -> float:
        """The logit without effects of seed and example."""
        if self.accuracy == 1:
            return np.inf
        # So that the mean over examples is near the accuracy.
        return float(logit(self.accuracy) * np.sqrt(1 + np.pi / 8 * self.difficulty**2))

    @property
    def truth(self) -> float:
        """The mean accuracy over all seeds and examples, by Gauss-Hermite quadrature."""
        z, weight = np.polynomial.hermite_e.hermegauss(81)
        spread = np.hypot(self.deviation, self.difficulty)
        return float(weight @ expit(self.level + spread * z) / weight.sum())

    @property
    def is_rich(self) -> bool:
        """Whether right and wrong answers are many enough for intervals not to be conservative."""
        return self.examples * self.accuracy * (1 - self.accuracy) >= 5


def tables(design: Design, arms: int, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields scores, bool [draws, arms, seeds, examples], in chunks."""
    shape = (arms, design.seeds, design.examples)
    size = max(1, CHUNK // int(np.prod(shape)))
    for done in range(0, draws, size):
        n = min(size, draws - done)
        effects = design.deviation * rng.normal(size=(n, arms, design.seeds, 1))
        if design.difficulty:
            effects = effects + design.difficulty * rng.normal(size=(n, 1, 1, design.examples))
        yield rng.random((n, *shape), np.float32) < expit(design.level + effects)


def coverage(design: Design, draws: int, rng: np.random.Generator) -> tuple[float, bool]:
    """The share of intervals with the true accuracy, and whether all lie between 0 and 1."""
    hits, inside = 0, True
    for scores in tables(design, 1, draws, rng):
        _, low, high = share_bounds(scores[:, 0])
        hits += ((low <= design.truth) & (design.truth <= high)).sum()
        inside &= bool((low >= 0).all() and (high <= 1).all())
    return hits / draws, inside


def false_alarms(design: Design, arms: int, draws: int, rng: np.random.Generator) -> float:
    """The share of comparisons of equal arms in which any pair counts as different."""
    first, second = np.triu_indices(arms, 1)
    alarms = 0
    for scores in tables(design, arms, draws, rng):
        for study in scores.astype(np.float64):
            _, _, p = differences(study[second] - study[first], share=True)
            alarms += bool((holm(p) < 1 - LEVEL).any())
    return alarms / draws


def designs(difficulty: float = 0.0, every: int = 1) -> list[Design]:
    """The grid of comparisons, with some of the numbers of examples and deviations."""
    grid = product(ACCURACIES, SEEDS, EXAMPLES[::every], DEVIATIONS[::every])
    return [Design(a, s, n, d, difficulty) for a, s, n, d in grid]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument('--draws', type=int, default=2000)
    flags.add_argument('--difficulty', type=float, default=0.0)
    flags.add_argument('--arms', type=int, default=1, help='more than 1 counts false alarms')
    given = flags.parse_args()
    rng = np.random.default_rng(0)
    print('accuracy  seeds  examples  deviation  rate')
    for design in designs(given.difficulty, every=1 if given.arms == 1 else 2):
        if given.arms > 1:
            rate = false_alarms(design, given.arms, given.draws, rng)
            note = '  too many' if rate > 1 - LEVEL else ''
        else:
            rate, inside = coverage(design, given.draws, rng)
            note = '' if inside else '  outside'
            if rate < 0.92 or (design.is_rich and rate > 0.98):
                note += '  off'
        d = design
        print(f'{d.accuracy:8} {d.seeds:6} {d.examples:9} {d.deviation:10}  {rate:.3f}{note}')


if __name__ == '__main__':
    main()
