"""Checksums of arrays: different after any change, and the same however an array is sharded.

Run as a module, this file computes them on 8 simulated devices, which requires a separate process,
and prints the results as JSON.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtrain.checkpoints import fingerprint
from jaxtrain.checkpoints.fingerprint import damaged, fingerprints
from tests.conftest import python

NARROW = ('bool', 'int8', 'uint8', 'float8_e4m3fn', 'int16', 'bfloat16', 'float16')
NARROW += ('int32', 'uint32', 'float32', 'complex64')
WIDE = ('int64', 'uint64', 'float64', 'complex128')
AXES = ('data', 'fsdp', 'tensor')
# The shape of a mesh, and the partition of an array's axes over it.
LAYOUTS = (
    ((8, 1, 1), ()),
    ((8, 1, 1), ('data',)),
    ((2, 2, 2), ('fsdp', 'tensor')),
    ((2, 2, 2), (None, ('fsdp', 'tensor'))),
    ((1, 2, 4), ('tensor', None, 'fsdp')),
)
INSPECTED = ('float32', 'bfloat16', 'float64')


def random_bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return an array of random bits, which may include NaN; a bool has a single bit."""
    rng = np.random.default_rng(seed)
    if dtype == 'bool':
        return rng.integers(2, size=shape).astype(bool)
    kind = np.dtype(jnp.dtype(dtype))
    data = rng.integers(256, size=(*shape, kind.itemsize), dtype=np.uint8)
    return data.view(kind).reshape(shape)


def of(array: np.ndarray) -> tuple[int, ...]:
    return tuple(fingerprints({'x': array})['x'])


def flips(array: np.ndarray):
    """Yield the array with each of its bits flipped, one at a time."""
    bits = 1 if array.dtype == bool else 8 * array.dtype.itemsize
    for item in range(array.size):
        for bit in range(bits):
            data = array.copy()
            raw = data.reshape(-1).view(np.uint8)
            raw[item * array.dtype.itemsize + bit // 8] ^= 1 << bit % 8
            yield data


def assert_every_flip_shows(dtype: str) -> None:
    array = random_bits(dtype, (2, 3))
    before = of(array)
    pairs = [of(flipped) for flipped in flips(array)]
    # Each of the two numbers must notice the change by itself.
    assert all(pair[0] != before[0] and pair[1] != before[1] for pair in pairs), dtype
    assert len({before, *pairs}) == 1 + len(pairs), dtype


@pytest.mark.parametrize('dtype', NARROW)
def test_every_bit_counts(dtype):
    assert_every_flip_shows(dtype)


def test_every_bit_of_64_bit_numbers_counts():
    with jax.enable_x64(True):
        for dtype in WIDE:
            assert jnp.asarray(random_bits(dtype, (1,))).dtype == dtype
            assert_every_flip_shows(dtype)


def test_equal_numbers_with_different_bits_differ():
    for one, two in (([0.0], [-0.0]), ([np.nan], [-np.nan])):
        assert of(np.float32(one)) != of(np.float32(two))


ARRAY = random_bits('float32', (64, 48), seed=1)


def changed(change) -> np.ndarray:
    array = ARRAY.copy()
    change(array)
    assert not np.array_equal(array.view(np.uint32), ARRAY.view(np.uint32))
    return array


def swap(array: np.ndarray, one, two) -> None:
    array[one], array[two] = array[two].copy(), array[one].copy()


CHANGES = {
    'neighbours swapped': lambda x: swap(x, (3, 4), (3, 5)),
    'elements swapped': lambda x: swap(x, (0, 0), (63, 47)),
    'rows swapped': lambda x: swap(x, 7, 8),
    'far rows swapped': lambda x: swap(x, 0, 32),
    'blocks swapped': lambda x: swap(x, np.s_[:16], np.s_[16:32]),
    'columns swapped': lambda x: swap(x, np.s_[:, 3], np.s_[:, 4]),
    'rows in reverse': lambda x: np.copyto(x, x[::-1].copy()),
    'rolled by one': lambda x: np.copyto(x, np.roll(x.copy(), 1)),
    'row of zeros': lambda x: x[9].fill(0),
    'block of zeros': lambda x: x[16:32].fill(0),
    'page of zeros': lambda x: x.reshape(-1)[1024:2048].fill(0),
    'end of zeros': lambda x: x[40:].fill(0),
    'all zeros': lambda x: x.fill(0),
    'row copied over its neighbour': lambda x: np.copyto(x[10], x[11].copy()),
    'bits changed in pairs': lambda x: x.view(np.uint32)[5, 3:5].__ixor__(1 << 31),
}


@pytest.mark.parametrize('name', CHANGES)
def test_larger_changes_show(name):
    before, after = of(ARRAY), of(changed(CHANGES[name]))
    assert before[0] != after[0] and before[1] != after[1]


@pytest.mark.parametrize('bit', [0, 1, 13, 30, 31])
def test_two_changes_do_not_cancel_each_other(bit):
    """Flip the same bit of any two of 300 words, like signs; weighted sums would not notice."""
    for words in (np.zeros(300, np.uint32), random_bits('uint32', (300,))):
        before = np.array(of(words), np.uint64)
        deltas = np.empty((words.size, 2), np.uint64)
        for index in range(words.size):
            one = words.copy()
            one[index] ^= np.uint32(1 << bit)
            deltas[index] = (np.array(of(one), np.uint64) - before) % 2**32
        sums = (deltas[:, None] + deltas[None]) % 2**32
        assert (sums[~np.eye(words.size, dtype=bool)] != 0).any(-1).all()


def test_any_number_of_changed_signs_shows():
    for rows in range(1, 65):
        assert of(changed(lambda x, rows=rows: np.negative(x[:rows], out=x[:rows]))) != of(ARRAY)


def test_fingerprints_of_a_tree():
    tree = {'params': {'a': jnp.arange(4.0), 'b': jnp.arange(4.0) + 1}, 'list': [jnp.ones(2)]}
    tree['opt_state'] = optax.adam(1.0).init({'w': jnp.ones((2, 2))})
    expected = fingerprints(tree)
    assert {*expected} == {
        'params/a', 'params/b', 'list/0', 'opt_state/0/count', 'opt_state/0/mu/w',
        'opt_state/0/nu/w',
    }  # fmt: skip
    assert json.loads(json.dumps(expected)) == expected
    assert damaged(tree, expected) == []
    params = tree['params']
    tree['params'] = {'a': params['b'], 'b': params['a']}
    assert damaged(tree, expected) == ['params/a', 'params/b']
    # A leaf without a checksum, and a checksum without a leaf, are skipped.
    assert damaged(tree, {'list/0': expected['list/0'], 'gone': [1, 2]}) == []


def test_a_named_tuple_has_the_same_paths_as_the_dict_it_is_saved_as():
    state = optax.adam(1.0).init({'w': jnp.arange(3.0)})
    as_saved = [{'count': state[0].count, 'mu': state[0].mu, 'nu': state[0].nu}, None]
    assert fingerprints(state) == fingerprints(as_saved)


def test_scalars_and_empty_arrays():
    pairs = fingerprints({'x': np.int32(7), 'e': np.zeros((0, 3), np.float32)})
    assert pairs['e'] == [0, 0] and pairs['x'] != [0, 0]


def test_x64_changes_nothing():
    tree = {dtype: random_bits(dtype, (3, 5)) for dtype in NARROW}
    before = fingerprints(tree)
    with jax.enable_x64(True):
        fingerprint._of_array.clear_cache()
        assert fingerprints(tree) == before


def test_the_formula_is_that_of_saved_checkpoints():
    """With another formula, all older checkpoints would count as damaged."""
    assert of(np.arange(1000, dtype=np.int32).reshape(10, 100)) == (1932209079, 704942247)
    assert of(random_bits('bfloat16', (7, 9))) == (1114363381, 32058646)


# On 8 devices.


def by_layout() -> dict:
    """Return, by dtype and layout, the fingerprint and the collectives of the compiled program."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    assert jax.device_count() == 8
    results: dict[str, dict] = {}
    for dtype in (*NARROW, *WIDE):
        array = random_bits(dtype, (8, 16, 24), seed=2)
        with jax.enable_x64(dtype in WIDE):
            results[dtype] = {'expected': of(array)}
            for sizes, axes in LAYOUTS if dtype in INSPECTED else LAYOUTS[2:3]:
                mesh = Mesh(np.array(jax.devices()).reshape(sizes), AXES)
                sharding = NamedSharding(mesh, PartitionSpec(*axes))
                placed = jax.device_put(array, sharding)
                name = f'{sizes} {axes}'
                results[dtype][name] = of(placed)
                if dtype in INSPECTED:
                    compiled = fingerprint._of_array.lower(placed).compile()
                    text, memory = compiled.as_text(), compiled.memory_analysis()
                    results[dtype][name] += (
                        [op for op in ('gather', 'all-to-all', 'permute') if op in text],
                        placed.sharding.shard_shape(placed.shape) != placed.shape,
                        'all-reduce' in text,
                        memory.temp_size_in_bytes,
                    )
            # One flipped bit in the shard of one device.
            bits = np.asarray(placed.reshape(-1)).copy()
            bits.view(np.uint8)[0] ^= 1
            results[dtype]['changed'] = of(jax.device_put(bits.reshape(array.shape), sharding))
    return results


@pytest.fixture(scope='module')
def devices() -> dict:
    child = python('-m', 'tests.checkpoints.test_fingerprint', devices=8)
    assert child.code == 0, child.err
    return json.loads(child.out)


@pytest.mark.parametrize('dtype', [*NARROW, *WIDE])
def test_fingerprints_are_the_same_on_any_mesh(dtype, devices):
    results = dict(devices[dtype])
    expected, changed = results.pop('expected'), results.pop('changed')
    assert len(results) == (len(LAYOUTS) if dtype in INSPECTED else 1)
    assert {tuple(pair[:2]) for pair in results.values()} == {tuple(expected)}
    assert changed[0] != expected[0] and changed[1] != expected[1]
    if dtype not in WIDE:  # and on one device
        assert of(random_bits(dtype, (8, 16, 24), seed=2)) == tuple(expected)


@pytest.mark.parametrize('dtype', INSPECTED)
def test_nothing_is_gathered(dtype, devices):
    sharded = 0
    for name, (*_, moved, is_sharded, reduced, temporary) in list(devices[dtype].items())[1:-1]:
        assert not moved, name
        assert reduced == is_sharded, name
        assert temporary < 8 * 16 * 24 * 8, name
        sharded += is_sharded
    assert sharded == 4


if __name__ == '__main__':
    print(json.dumps(by_layout()))
