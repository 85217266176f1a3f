"""Permutations that are computed per index."""

import itertools

import numpy as np
import pytest
from scipy import stats

from jaxtrain.data.permutation import permutation


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 23, 100, 101, 2**16, 2**16 + 1])
def test_every_index_occurs_once(size):
    for seed in range(3):
        result = permutation(size, (seed, 0))(np.arange(size))
        np.testing.assert_array_equal(np.sort(result), np.arange(size))


def test_an_index_has_the_same_place_whatever_else_is_asked():
    permute, whole = permutation(1000, (5, 2)), permutation(1000, (5, 2))(np.arange(1000))
    assert [int(permute(np.array([index]))[0]) for index in range(0, 1000, 99)] == whole[
        ::99
    ].tolist()


def test_all_orders_of_a_few_elements_are_equally_likely():
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for seed in range(2400):
        counts[tuple(permutation(4, (seed,))(np.arange(4)).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_places_and_neighbours_are_uniform():
    """Over 400 seeds: where an element lands, and how far apart two neighbours land."""
    size, ask = 997, np.array([0, 1, 500, 996])
    places = np.array([permutation(size, (seed, 1))(ask) for seed in range(400)])
    gaps = np.diff(places, axis=1) % size
    for column in [*places.T, *gaps.T]:
        assert stats.kstest(column / size, 'uniform').pvalue > 1e-3
