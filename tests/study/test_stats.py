"""Intervals over seeds and examples: known formulas, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from jaxtrain.study.stats import Interval, interval


def test_one_seed_is_students_interval_over_examples():
    scores = np.random.default_rng(0).random(40)
    found = interval(scores[None])
    low, high = stats.t.interval(0.95, 39, scores.mean(), stats.sem(scores))
    assert (found.mean, found.low, found.high) == pytest.approx((scores.mean(), low, high))


def test_examples_that_all_agree_leave_students_interval_over_seeds():
    by_seed = np.random.default_rng(1).random(5)
    found = interval(np.repeat(by_seed[:, None], 300, axis=1))
    low, high = stats.t.interval(0.95, 4, by_seed.mean(), stats.sem(by_seed))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_variance_by_the_textbook_mean_squares():
    """Two-way crossed random effects: var(mean) = (MS_seed + MS_example - MS_residual) / (s e)."""
    rng = np.random.default_rng(2)
    seeds, examples = 4, 7
    scores = rng.normal(size=(seeds, 1)) + rng.normal(size=(1, examples))
    scores = scores + 0.3 * rng.normal(size=(seeds, examples))
    grand, rows, columns = scores.mean(), scores.mean(1), scores.mean(0)
    ms_seed = examples * ((rows - grand) ** 2).sum() / (seeds - 1)
    ms_example = seeds * ((columns - grand) ** 2).sum() / (examples - 1)
    rest = sum(
        (scores[i, j] - rows[i] - columns[j] + grand) ** 2
        for i in range(seeds)
        for j in range(examples)
    )
    ms_rest = rest / ((seeds - 1) * (examples - 1))
    total = ms_seed + ms_example - ms_rest
    freedom = total**2 / (ms_seed**2 / (seeds - 1) + ms_example**2 / (examples - 1))
    half = stats.t.ppf(0.975, freedom) * np.sqrt(total / (seeds * examples))
    found = interval(scores)
    assert (found.low, found.high) == pytest.approx((grand - half, grand + half))


@pytest.mark.parametrize(
    ('seeds', 'seed_sd', 'example_sd', 'residual_sd', 'most'),
    [
        (5, 1.0, 3.0, 1.0, 0.975),
        (5, 1.0, 0.0, 1.0, 0.975),
        (3, 0.5, 4.0, 2.0, 0.975),
        (10, 0.2, 2.0, 2.0, 0.975),
        # With neither effect the residual counts twice over: safe, but wider than it need be.
        (5, 0.0, 0.0, 1.0, 1.0),
    ],
)
def test_coverage(seeds, seed_sd, example_sd, residual_sd, most):
    """95% of the intervals hold the true mean, over new seeds and new examples."""
    rng, draws, examples = np.random.default_rng(3), 2000, 25
    hits = 0
    for _ in range(draws):
        scores = seed_sd * rng.normal(size=(seeds, 1)) + example_sd * rng.normal(size=examples)
        hits += interval(scores + residual_sd * rng.normal(size=(seeds, examples))).holds_zero
    assert 0.93 < hits / draws <= most


def test_more_of_the_same_scores_is_narrower():
    scores = np.random.default_rng(4).random((5, 50))
    wide, narrow = interval(scores), interval(np.tile(scores, (1, 4)))
    assert narrow.high - narrow.low < wide.high - wide.low


@pytest.mark.parametrize('shape', [(1, 10), (5, 10), (2, 2)])
@pytest.mark.parametrize('value', [0.0, 1.0])
def test_constant_scores_have_no_width(shape, value):
    assert interval(np.full(shape, value)) == Interval(value, value, value)


def test_no_nan_where_the_two_effects_cancel():
    """Seeds and examples agree on every mean, but not on the cells."""
    assert interval(np.array([[0.0, 1.0], [1.0, 0.0]])) == Interval(0.5, 0.5, 0.5)


@pytest.mark.parametrize('turned', [False, True])
def test_cells_that_cancel_do_not_make_the_interval_narrower_than_either_effect(turned):
    """The variance is at least that of either effect: 1/24 here, which the residual equals."""
    scores = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    half = stats.t.ppf(0.975, 3) * np.sqrt(1 / 24)
    found = interval(scores.T if turned else scores)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_integers_and_float32_are_counted_in_float64():
    scores = np.random.default_rng(5).integers(0, 2, (3, 20))
    assert interval(scores) == interval(scores.astype(np.float32)) == interval(scores * 1.0)


@pytest.mark.parametrize(
    ('low', 'high', 'holds'), [(-1, 1, True), (0, 1, True), (-1, 0, True), (0.1, 1, False)]
)
def test_holds_zero(low, high, holds):
    assert Interval((low + high) / 2, low, high).holds_zero is holds
    assert Interval(-(low + high) / 2, -high, -low).holds_zero is holds
