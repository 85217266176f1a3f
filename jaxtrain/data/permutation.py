"""Permutations that are computed per index, so that none is held as an array."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

ROUNDS = 8


@lru_cache(maxsize=4)
def permutation(size: int, seed: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a random permutation of `range(size)`, as a function of indices, int64 [n] -> [n].

    The function is a Feistel network over pairs of digits to the base b, the square root of the
    size, rounded up. Its round functions are tables of b random numbers. Results of `size` or more,
    which are at most 2b of the b * b, are permuted again until they are smaller. Luby & Rackoff
    (1988, doi:10.1137/0217022) prove that four rounds cannot be distinguished from a random
    permutation in polynomial time; Black & Rogaway (2002, doi:10.1007/3-540-45760-7_9) generalise
    the network to any size. Grain's `index_shuffle` computes a single index per call, which takes
    several times as long as reading an image from memory.

    Args:
      size: the number of elements, 1 or more.
      seed: seeds the tables.
    """
    base = math.isqrt(size - 1) + 1
    tables = np.random.default_rng(seed).integers(base, size=(ROUNDS, base))

    def once(indices: np.ndarray) -> np.ndarray:
        left, right = np.divmod(indices, base)
        for table in tables:
            left, right = right, (left + table[right]) % base
        return left * base + right

    def permute(indices: np.ndarray) -> np.ndarray:
        result = once(indices)
        while (outside := result >= size).any():
            result[outside] = once(result[outside])
        return result

    return permute
