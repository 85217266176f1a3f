"""How often intervals of a share contain the true value, and how rarely equal arms differ.

`python -m tests.benchmarks.coverage` goes through the whole grid.
"""

import numpy as np
import pytest

from tests.benchmarks.coverage import Design, coverage, designs, false_alarms

# Designs at the edges of the grid.
FEW = [
    Design(0.5, 2, 2000, 0.35),
    Design(0.9, 3, 100, 0.0),
    Design(0.99, 2, 500, 0.1),
    Design(0.99, 10, 50, 0.35),
    Design(0.9, 2, 100, 0.2, difficulty=1.0),
]


def check(design: Design, draws: int) -> None:
    rate, inside = coverage(design, draws, np.random.default_rng(0))
    error = 2.5 * np.sqrt(0.08 * 0.92 / draws)
    assert inside
    assert rate >= 0.92 - error
    assert not design.is_rich or rate <= 0.98 + error


@pytest.mark.parametrize('design', FEW, ids=str)
def test_coverage(design):
    check(design, 300)


def test_the_truth_is_the_mean_over_seeds_and_examples():
    design, rng = Design(0.9, 2, 100, 0.35, difficulty=2.0), np.random.default_rng(1)
    effects = rng.normal(size=400_000) * np.hypot(0.35, 2.0)
    mean = (1 / (1 + np.exp(-design.level - effects))).mean()
    assert design.truth == pytest.approx(mean, abs=0.002)
    assert Design(1.0, 2, 50, 0.35).truth == 1.0
    assert Design(0.5, 2, 50, 0.35).truth == pytest.approx(0.5)


@pytest.mark.parametrize('design', [Design(0.9, 2, 50, 0.1), Design(0.5, 5, 100, 0.35)], ids=str)
def test_ten_equal_arms_differ_in_few_studies(design):
    assert false_alarms(design, 10, 60, np.random.default_rng(0)) <= 0.05


@pytest.mark.slow
def test_coverage_on_the_grid():
    for design in designs(every=2):
        if design.accuracy < 1:
            check(design, 1000)


@pytest.mark.slow
def test_ten_equal_arms_differ_in_few_studies_on_the_grid():
    for accuracy in (0.5, 0.9, 0.99):
        for seeds in (2, 3, 10):
            design = Design(accuracy, seeds, 200, 0.1)
            assert false_alarms(design, 10, 200, np.random.default_rng(0)) <= 0.05 + 0.03, design
