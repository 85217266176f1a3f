"""Intervals over seeds and examples: known formulas, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from jaxtrain.study.stats import Interval, interval, parts, share_bounds, share_interval


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
        result = interval(scores + residual_sd * rng.normal(size=(seeds, examples)))
        hits += result.low <= 0 <= result.high
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


def test_one_example_has_an_interval_without_bounds():
    assert interval(np.ones((3, 1))) == Interval(1.0, -np.inf, np.inf)


@pytest.mark.parametrize(('right', 'examples'), [(0, 50), (1, 50), (37, 50), (50, 50), (1, 1)])
def test_a_share_of_one_seed_has_the_interval_of_clopper_and_pearson(right, examples):
    """Up to the t quantile, and the n - 1 of the variance, that allow for an estimated variance."""
    scores = (np.arange(examples) < right)[None].astype(float)
    result = share_interval(scores)
    low, high = stats.binomtest(right, examples).proportion_ci(0.95, 'exact')
    assert result.mean == right / examples
    # With all right or all wrong, one end is the mean, and the other has 2.5% beyond it as well.
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.011)


def test_seeds_that_agree_on_every_example_count_as_one():
    """Repeating a table adds no information on examples; of seeds, it shows no variation."""
    once = np.random.default_rng(6).random(200) < 0.8
    one, ten = share_interval(once[None]), share_interval(np.tile(once, (10, 1)))
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high), abs=1e-9)


def test_seeds_that_differ_give_students_interval():
    """With many examples, in the middle of the range, the seeds alone decide."""
    rng = np.random.default_rng(7)
    chances = np.array([0.46, 0.49, 0.5, 0.53])
    scores = rng.random((4, 40_000)) < chances[:, None]
    low, high = stats.t.interval(0.95, 3, scores.mean(), stats.sem(scores.mean(1)))
    result = share_interval(scores)
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.002)


def test_banerjee_adds_the_squares_and_satterthwaite_lies_below():
    p = parts(np.random.default_rng(8).normal(size=(4, 30)) + np.arange(30))
    seed, shared = stats.t.ppf(0.975, 3) ** 2 * p.seed, stats.t.ppf(0.975, 29) ** 2 * p.shared
    assert p.shared > p.seed > 0
    assert p.banerjee() == pytest.approx(np.sqrt(seed + shared))
    freedom = (p.seed + p.shared) ** 2 / (p.seed**2 / 3 + p.example**2 / 29 + p.noise**2 / (3 * 29))
    half = stats.t.ppf(0.975, min(freedom, 29)) * np.sqrt(p.seed + p.shared)
    assert p.satterthwaite() == pytest.approx(half) and half < p.banerjee()


@pytest.mark.parametrize('seeds', [1, 2, 3, 10])
def test_no_interval_of_a_share_leaves_the_range(seeds):
    rng = np.random.default_rng(9)
    for accuracy in (0.0, 0.02, 0.5, 0.98, 1.0):
        scores = rng.random((200, seeds, 12)) < accuracy + rng.normal(size=(200, seeds, 1)) / 5
        mean, low, high = share_bounds(scores)
        assert (low >= 0).all() and (low <= mean).all()
        assert (mean <= high).all() and (high <= 1).all()
        assert (low < high).all()


def test_several_tables_at_once_are_the_same_as_one_by_one():
    scores = np.random.default_rng(10).random((5, 3, 40)) < 0.7
    together = np.stack(share_bounds(scores), -1)
    for table, numbers in zip(scores, together, strict=True):
        one = share_interval(table)
        assert (one.mean, one.low, one.high) == pytest.approx(tuple(numbers))
