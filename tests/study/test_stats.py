"""Intervals over seeds and examples: known formulas, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from jaxtrain.study.stats import Interval, interval


def test_one_seed_gives_students_interval_over_examples():
    scores = np.random.default_rng(0).random(40)
    result = interval(scores[None])
    low, high = stats.t.interval(0.95, 39, scores.mean(), stats.sem(scores))
    assert (result.mean, result.low, result.high) == pytest.approx((scores.mean(), low, high))


def test_equal_examples_give_students_interval_over_seeds():
    by_seed = np.random.default_rng(1).random(5)
    result = interval(np.repeat(by_seed[:, None], 300, axis=1))
    low, high = stats.t.interval(0.95, 4, by_seed.mean(), stats.sem(by_seed))
    assert (result.low, result.high) == pytest.approx((low, high))


def test_the_variance_from_mean_squares():
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
    result = interval(scores)
    assert (result.low, result.high) == pytest.approx((grand - half, grand + half))


@pytest.mark.parametrize(
    ('seeds', 'seed_sd', 'example_sd', 'residual_sd', 'most'),
    [
        (5, 1.0, 3.0, 1.0, 0.975),
        (5, 1.0, 0.0, 1.0, 0.975),
        (3, 0.5, 4.0, 2.0, 0.975),
        (10, 0.2, 2.0, 2.0, 0.975),
        # Without either effect the residual counts twice: conservative intervals.
        (5, 0.0, 0.0, 1.0, 1.0),
    ],
)
def test_coverage(seeds, seed_sd, example_sd, residual_sd, most):
    """95% of the intervals contain the true mean, over new seeds and new examples."""
    rng, draws, examples = np.random.default_rng(3), 2000, 25
    hits = 0
    for _ in range(draws):
        scores = seed_sd * rng.normal(size=(seeds, 1)) + example_sd * rng.normal(size=examples)
        hits += interval(scores + residual_sd * rng.normal(size=(seeds, examples))).holds_zero
    assert 0.93 < hits / draws <= most


def test_more_scores_make_the_interval_narrower():
    scores = np.random.default_rng(4).random((5, 50))
    wide, narrow = interval(scores), interval(np.tile(scores, (1, 4)))
    assert narrow.high - narrow.low < wide.high - wide.low


@pytest.mark.parametrize('shape', [(1, 10), (5, 10), (2, 2)])
@pytest.mark.parametrize('value', [0.0, 1.0])
def test_constant_scores_have_an_interval_without_width(shape, value):
    assert interval(np.full(shape, value)) == Interval(value, value, value)


def test_no_nan_if_the_effects_cancel():
    """All means over seeds and over examples are equal, but the cells differ."""
    assert interval(np.array([[0.0, 1.0], [1.0, 0.0]])) == Interval(0.5, 0.5, 0.5)


@pytest.mark.parametrize('turned', [False, True])
def test_the_variance_is_at_least_that_of_either_effect(turned):
    """The residual equals the variance of the effect, 1/24, and must not cancel it."""
    scores = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    half = stats.t.ppf(0.975, 3) * np.sqrt(1 / 24)
    result = interval(scores.T if turned else scores)
    assert (result.mean, result.low, result.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_integers_and_float32_are_converted_to_float64():
    scores = np.random.default_rng(5).integers(0, 2, (3, 20))
    assert interval(scores) == interval(scores.astype(np.float32)) == interval(scores * 1.0)


@pytest.mark.parametrize(
    ('low', 'high', 'holds'), [(-1, 1, True), (0, 1, True), (-1, 0, True), (0.1, 1, False)]
)
def test_holds_zero(low, high, holds):
    assert Interval((low + high) / 2, low, high).holds_zero is holds
    assert Interval(-(low + high) / 2, -high, -low).holds_zero is holds
