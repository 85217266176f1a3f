"""Checksums of arrays: other after any change, and the same however an array is cut over devices.

Run as a module it takes them on 8 simulated devices, which takes a process of its own, and prints
what it found as JSON.
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
# A mesh, and how the axes of an array are cut over it.
LAYOUTS = (
    ((8, 1, 1), ()),
    ((8, 1, 1), ('data',)),
    ((2, 2, 2), ('fsdp', 'tensor')),
    ((2, 2, 2), (None, ('fsdp', 'tensor'))),
    ((1, 2, 4), ('tensor', None, 'fsdp')),
)
LOOKED_AT = ('float32', 'bfloat16', 'float64')


def random_bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Any bits, of which some are not numbers; a bool has but one."""
    rng = np.random.default_rng(seed)
    if dtype == 'bool':
        return rng.integers(2, size=shape).astype(bool)
    kind = np.dtype(jnp.dtype(dtype))
    data = rng.integers(256, size=(*shape, kind.itemsize), dtype=np.uint8)
    return data.view(kind).reshape(shape)


def of(array: np.ndarray) -> tuple[int, ...]:
    return tuple(fingerprints({'x': array})['x'])


def flips(array: np.ndarray):
    """The array with each of its bits changed, one at a time."""
    bits = 1 if array.dtype == bool else 8 * array.dtype.itemsize
    for item in range(array.size):
        for bit in range(bits):
            data = array.copy()
            raw = data.reshape(-1).view(np.uint8)
            raw[item * array.dtype.itemsize + bit // 8] ^= 1 << bit % 8
            yield data


def every_flip_shows(dtype: str) -> None:
    array = random_bits(dtype, (2, 3))
    before = of(array)
    pairs = [of(flipped) for flipped in flips(array)]
    # In both of the numbers, as each alone is to notice it.
    assert all(pair[0] != before[0] and pair[1] != before[1] for pair in pairs), dtype
    assert len({before, *pairs}) == 1 + len(pairs), dtype


@pytest.mark.parametrize('dtype', NARROW)
def test_every_bit_counts(dtype):
    every_flip_shows(dtype)


def test_every_bit_of_wide_numbers_counts():
    with jax.enable_x64(True):
        for dtype in WIDE:
            assert jnp.asarray(random_bits(dtype, (1,))).dtype == dtype
            every_flip_shows(dtype)


def test_numbers_that_are_equal_but_not_the_same():
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
    'row twice': lambda x: np.copyto(x[10], x[11].copy()),
    'bits changed in pairs': lambda x: x.view(np.uint32)[5, 3:5].__ixor__(1 << 31),
}


@pytest.mark.parametrize('name', CHANGES)
def test_larger_changes(name):
    before, after = of(ARRAY), of(changed(CHANGES[name]))
    assert before[0] != after[0] and before[1] != after[1]


@pytest.mark.parametrize('bit', [0, 1, 13, 30, 31])
def test_two_changes_do_not_cancel_each_other(bit):
    """The same bit of any two of 300 words, as where signs change; in sums of products they do."""
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


def test_of_a_tree():
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
    # A leaf without a checksum passes; those of a checksum without a leaf are not asked for.
    assert damaged(tree, {'list/0': expected['list/0'], 'gone': [1, 2]}) == []


def test_a_named_tuple_goes_by_the_names_of_the_dict_it_is_saved_as():
    state = optax.adam(1.0).init({'w': jnp.arange(3.0)})
    as_saved = [{'count': state[0].count, 'mu': state[0].mu, 'nu': state[0].nu}, None]
    assert fingerprints(state) == fingerprints(as_saved)


def test_scalars_and_what_is_empty():
    found = fingerprints({'x': np.int32(7), 'e': np.zeros((0, 3), np.float32)})
    assert found['e'] == [0, 0] and found['x'] != [0, 0]


def test_x64_changes_nothing():
    tree = {dtype: random_bits(dtype, (3, 5)) for dtype in NARROW}
    before = fingerprints(tree)
    with jax.enable_x64(True):
        fingerprint._of_array.clear_cache()
        assert fingerprints(tree) == before


def test_the_formula_is_what_checkpoints_were_saved_with():
    """Its results are in files: another would call all older checkpoints damaged."""
    assert of(np.arange(1000, dtype=np.int32).reshape(10, 100)) == (1932209079, 704942247)
    assert of(random_bits('bfloat16', (7, 9))) == (1114363381, 32058646)


# On 8 devices.


def by_layout() -> dict:
    """By dtype and layout: the fingerprint, and what the compiled program sends about."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    assert jax.device_count() == 8
    found = {}
    for dtype in (*NARROW, *WIDE):
        array = random_bits(dtype, (8, 16, 24), seed=2)
        with jax.enable_x64(dtype in WIDE):
            found[dtype] = {'expected': of(array)}
            for sizes, cut in LAYOUTS if dtype in LOOKED_AT else LAYOUTS[2:3]:
                mesh = Mesh(np.array(jax.devices()).reshape(sizes), AXES)
                where = NamedSharding(mesh, PartitionSpec(*cut))
                placed = jax.device_put(array, where)
                name = f'{sizes} {cut}'
                found[dtype][name] = of(placed)
                if dtype in LOOKED_AT:
                    compiled = fingerprint._of_array.lower(placed).compile()
                    text, memory = compiled.as_text(), compiled.memory_analysis()
                    found[dtype][name] += (
                        [op for op in ('gather', 'all-to-all', 'permute') if op in text],
                        placed.sharding.shard_shape(placed.shape) != placed.shape,
                        'all-reduce' in text,
                        memory.temp_size_in_bytes,
                    )
            # One bit of one device's part.
            spot = placed.reshape(-1)
            bits = np.asarray(spot).copy()
            bits.view(np.uint8)[0] ^= 1
            found[dtype]['changed'] = of(jax.device_put(bits.reshape(array.shape), where))
    return found


@pytest.fixture(scope='module')
def devices() -> dict:
    child = python('-m', 'tests.checkpoints.test_fingerprint', devices=8)
    assert child.code == 0, child.err
    return json.loads(child.out)


@pytest.mark.parametrize('dtype', [*NARROW, *WIDE])
def test_is_the_same_on_any_mesh(dtype, devices):
    found = dict(devices[dtype])
    expected, other = found.pop('expected'), found.pop('changed')
    assert len(found) == (len(LAYOUTS) if dtype in LOOKED_AT else 1)
    assert {tuple(pair[:2]) for pair in found.values()} == {tuple(expected)}
    assert other[0] != expected[0] and other[1] != expected[1]
    if dtype not in WIDE:  # and on one device
        assert of(random_bits(dtype, (8, 16, 24), seed=2)) == tuple(expected)


@pytest.mark.parametrize('dtype', LOOKED_AT)
def test_nothing_is_gathered(dtype, devices):
    cut = 0
    for name, (*_, moved, is_cut, reduced, temporary) in list(devices[dtype].items())[1:-1]:
        assert not moved, name
        assert reduced == is_cut, name
        assert temporary < 8 * 16 * 24 * 8, name
        cut += is_cut
    assert cut == 4


if __name__ == '__main__':
    print(json.dumps(by_layout()))
