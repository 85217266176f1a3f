"""Checksums of arrays, taken on the devices: the same on any mesh, other after any flipped bit.

Each array is read as unsigned 32-bit words `w_i`, and its fingerprint is the pair of sums
`sum(f(w_i, i))` and `sum(g(w_i, i))` modulo 2^32. For each `i`, f and g have an inverse, so any
change of a single word shows in both; and they mix its bits with those of `i`, so several changes
cancel each other by chance alone (of weighted sums, any two changed signs would). Sums of integers
do not depend on their order, so an array that is cut over devices need not be gathered.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Odd multipliers of 32 bits: Knuth's golden ratio, and four of MurmurHash3 and xxHash.
_INDEX, _INNER, _OUTER = 2654435761, 2246822519, 3266489917
_FIRST = (2246822507, 3266489909)


def fingerprints(tree: Any) -> dict[str, list[int]]:
    """Of each leaf by its path ('params/head/kernel'): two numbers of 32 bits.

    Args:
      tree: nested dicts, lists or named tuples of arrays, over all devices of all processes.
    """
    leaves = {path_text(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    # All are under way before the first is waited for.
    values = jax.device_get({path: _of_array(leaf) for path, leaf in leaves.items()})
    return {path: [int(n) for n in pair] for path, pair in values.items()}


def damaged(tree: Any, expected: Mapping[str, list[int]]) -> list[str]:
    """The paths of leaves that are not what they were; those that `expected` lacks are passed."""
    found = fingerprints(tree)
    return [path for path, pair in found.items() if path in expected and expected[path] != pair]


def path_text(path: tuple) -> str:
    """Keys of a path joined by '/', the same for a named tuple and the dict that it is saved as."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def of_text(text: str) -> int:
    """Checksum of a text."""
    return zlib.crc32(text.encode())


@jax.jit
def _of_array(x: jax.Array) -> jax.Array:
    words = _words(x)
    index = jnp.zeros((1,) * words.ndim, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = index * np.uint32(size % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, _line(words, axis), axis)
    place = _mixed(index * np.uint32(_INDEX), _INNER)
    sums = []
    for multiplier in _FIRST:
        mixed = _mixed((words ^ place) * np.uint32(multiplier), _INNER)
        sums.append(jnp.sum(_mixed(mixed, _OUTER), dtype=jnp.uint32))
    return jnp.stack(sums)


def _mixed(x: jax.Array, multiplier: int) -> jax.Array:
    """Has each bit change others; it can be undone, so no two words become the same."""
    x = (x ^ (x >> 15)) * np.uint32(multiplier)
    return x ^ (x >> 13)


def _line(words: jax.Array, axis: int) -> tuple[int, ...]:
    return tuple(size if a == axis else 1 for a, size in enumerate(words.shape))


def _words(x: jax.Array) -> jax.Array:
    """The bits of an array as uint32; wider numbers have an axis more."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], -1)
    size = x.dtype.itemsize
    narrow = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, narrow).astype(jnp.uint32)
