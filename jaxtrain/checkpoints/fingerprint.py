"""Checksums of arrays, computed on the devices: equal on any mesh, different after any flipped bit.

Each array is read as unsigned 32-bit words `w_i`, and its fingerprint is the pair of sums
`sum(f(w_i, i))` and `sum(g(w_i, i))` modulo 2^32. For each `i`, f and g are invertible, so that any
change of a single word changes both sums. They mix the bits of the word with those of `i`, so that
several changes cancel only by chance; in weighted sums, any two changed signs would cancel. Sums of
integers do not depend on the order, so that a sharded array need not be gathered.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Odd 32-bit multipliers: Knuth's golden ratio, and four from MurmurHash3 and xxHash.
_INDEX, _INNER, _OUTER = 2654435761, 2246822519, 3266489917
_FIRST = (2246822507, 3266489909)


def fingerprints(tree: Any) -> dict[str, list[int]]:
    """Return the fingerprint of each leaf, two 32-bit numbers, by path ('params/head/kernel').

    Args:
      tree: nested dicts, lists or named tuples of arrays, which may be sharded over all processes.
    """
    leaves = {path_text(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    # All computations are dispatched before the first result is fetched.
    values = jax.device_get({path: _of_array(leaf) for path, leaf in leaves.items()})
    return {path: [int(n) for n in pair] for path, pair in values.items()}


def damaged(tree: Any, expected: Mapping[str, list[int]]) -> list[str]:
    """Return the paths of leaves whose fingerprints differ; those not in `expected` are skipped."""
    actual = fingerprints(tree)
    return [path for path, pair in actual.items() if path in expected and expected[path] != pair]


def path_text(path: tuple) -> str:
    """Join the keys of a path by '/', the same for a named tuple and the dict it is saved as."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def of_text(text: str) -> int:
    """Return the CRC-32 of a text."""
    return zlib.crc32(text.encode())


@jax.jit
def _of_array(x: jax.Array) -> jax.Array:
    words = _words(x)
    index = jnp.zeros((1,) * words.ndim, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = index * np.uint32(size % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, _line_shape(words, axis), axis)
    position = _mixed(index * np.uint32(_INDEX), _INNER)
    sums = []
    for multiplier in _FIRST:
        mixed = _mixed((words ^ position) * np.uint32(multiplier), _INNER)
        sums.append(jnp.sum(_mixed(mixed, _OUTER), dtype=jnp.uint32))
    return jnp.stack(sums)


def _mixed(x: jax.Array, multiplier: int) -> jax.Array:
    """Mix the bits of each word. This is invertible, so that different words stay different."""
    x = (x ^ (x >> 15)) * np.uint32(multiplier)
    return x ^ (x >> 13)


def _line_shape(words: jax.Array, axis: int) -> tuple[int, ...]:
    return tuple(size if a == axis else 1 for a, size in enumerate(words.shape))


def _words(x: jax.Array) -> jax.Array:
    """Return the bits of an array as uint32. Numbers wider than 32 bits get an additional axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], -1)
    size = x.dtype.itemsize
    narrow = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, narrow).astype(jnp.uint32)
