"""Paired differences: their intervals, p-values and Holm's correction."""

import numpy as np
import pytest
from scipy import stats

from jaxtrain.runs.metric import Metric
from jaxtrain.study.pairs import FEWEST_EXAMPLES, LEAST_P, differences, holm, p_value, pairs_of
from jaxtrain.study.stats import parts
from jaxtrain.tasks.task import LOSS

ACCURACY = Metric('accuracy', higher_is_better=True, percent=True)


def right(rng, shape, chance) -> np.ndarray:
    return (rng.random(shape) < chance).astype(float)


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, 0.001, 0.5])), [1.0, 0.003, 1.0])
    rows = np.random.default_rng(0).random((4, 6)) / 9
    np.testing.assert_allclose(holm(rows), [holm(row) for row in rows])


def test_the_p_value_of_equal_examples_is_that_of_students_test():
    by_seed = np.random.default_rng(1).normal(0.5, 1, 6)
    p = parts(np.repeat(by_seed[:, None], 300, axis=1))
    expected = stats.ttest_1samp(by_seed, 0).pvalue
    assert p_value(p, abs(p.mean)) == pytest.approx(expected, rel=1e-6)


def test_the_p_value_of_one_seed_is_that_of_students_test_over_examples():
    values = np.random.default_rng(2).normal(0.2, 1, 90)
    (_, _, p) = differences(values[None], share=False)
    assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-6)


def test_p_is_less_than_five_percent_where_the_interval_excludes_zero():
    rng = np.random.default_rng(3)
    first, second = (right(rng, (300, 4, 80), c) for c in (0.75, 0.6))
    for share in (True, False):
        _, ends, p = differences(first - second, share)
        excludes = (ends[:, 1] > 0) | (ends[:, 2] < 0)
        assert 0.1 < excludes.mean() < 0.9
        np.testing.assert_array_equal(excludes, p < 0.05)


@pytest.mark.parametrize('seeds', [1, 2, 5])
@pytest.mark.parametrize('examples', [1, 3, 100])
def test_a_difference_of_shares_has_width_and_stays_within_its_range(seeds, examples):
    """Also if one arm is right wherever the other is wrong."""
    for value in (-1.0, 0.0, 1.0):
        _, (mean, low, high), p = differences(np.full((seeds, examples), value), share=True)
        assert mean == value and -1 <= low <= mean <= high <= 1 and low < high
        assert LEAST_P <= p <= 1
        if examples < 4:
            assert low <= 0 <= high


def test_pairs_are_later_minus_earlier():
    rng = np.random.default_rng(4)
    scores = {name: right(rng, (3, 50), c) for name, c in (('a', 0.2), ('b', 0.5), ('c', 0.9))}
    pairs = pairs_of(scores, ACCURACY)
    assert [(p.first, p.second) for p in pairs] == [('b', 'a'), ('c', 'a'), ('c', 'b')]
    for pair in pairs:
        expected = scores[pair.first].mean() - scores[pair.second].mean()
        assert pair.difference.mean == pytest.approx(expected)
        other, turned = pair.against(pair.first)
        assert other == pair.second and turned.mean == -pair.difference.mean
        assert (turned.low, turned.high) == (-pair.difference.high, -pair.difference.low)
        assert pair.against(pair.second) == (pair.first, pair.difference)
    assert pairs[1].differs and pairs[1].p < 0.05


@pytest.mark.parametrize(
    ('seeds', 'examples', 'known'),
    [(1, 500, False), (2, FEWEST_EXAMPLES, True), (5, FEWEST_EXAMPLES - 1, False)],
)
def test_one_seed_or_a_handful_of_examples_gives_no_verdict(seeds, examples, known):
    scores = {'a': np.zeros((seeds, examples)), 'b': np.ones((seeds, examples))}
    for metric in (ACCURACY, LOSS):
        (pair,) = pairs_of(scores, metric)
        assert (pair.differs is not None) == known


def test_losses_of_one_example_have_an_interval_without_bounds():
    (pair,) = pairs_of({'a': np.ones((2, 1)), 'b': np.zeros((2, 1))}, LOSS)
    assert (pair.difference.low, pair.difference.high) == (-np.inf, np.inf) and pair.p > 0.99
