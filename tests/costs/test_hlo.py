"""Figures read from a compiled program's text, for programs whose communication is known.

Run as a module, this file compiles them for 8 simulated devices, which requires a separate process,
and prints their texts as JSON.
"""

import json
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.costs.hlo import Program
from tests.conftest import needs_libtpu, python

DEVICES, ROWS, COLUMNS, TRIPS = 8, 128, 1024, 3
SHARE = ROWS * COLUMNS * 4  # Bytes of the arrays below on each device.


def one_of_each(x: jax.Array) -> jax.Array:
    """Each kind of collective once."""
    x = lax.psum(x, 'd') + 1
    whole = jnp.sin(lax.all_gather(x, 'd', tiled=True))
    x = lax.psum_scatter(whole, 'd', tiled=True) * x
    x = jnp.cos(lax.all_to_all(x, 'd', 1, 0, tiled=True)).reshape(x.shape)
    return lax.ppermute(x, 'd', [(i, (i + 1) % DEVICES) for i in range(DEVICES)])


EACH = {
    'all-reduce': SHARE,
    'all-gather': DEVICES * SHARE,
    'reduce-scatter': DEVICES * SHARE,
    'all-to-all': SHARE,
    'collective-permute': SHARE,
}


def in_a_loop(x: jax.Array) -> jax.Array:
    return lax.scan(lambda c, _: (one_of_each(c), None), x, None, length=TRIPS)[0]


def pair(x: jax.Array) -> jax.Array:
    """Two sums in one collective; the second has half the bytes of the first."""
    both = lax.psum((x, jnp.sin(x[: ROWS // 2])), 'd')
    return both[0].at[: ROWS // 2].add(both[1])


def until_small(x: jax.Array) -> jax.Array:
    return lax.while_loop(lambda c: c.max() > 1, lambda c: lax.psum(c, 'd') / 16, x)


def twice(x: jax.Array) -> jax.Array:
    return lax.psum(jnp.sin(lax.psum(x, 'd')), 'd')


PROGRAMS = (one_of_each, in_a_loop, pair, twice, until_small)


def text(program, devices) -> str:
    mesh = Mesh(np.array(devices), ('d',))
    whole = jax.ShapeDtypeStruct(
        (DEVICES * ROWS, COLUMNS), jnp.float32, sharding=NamedSharding(mesh, P('d'))
    )
    mapped = jax.shard_map(program, mesh=mesh, in_specs=P('d'), out_specs=P('d'), check_vma=False)
    return jax.jit(mapped).lower(whole).compile().as_text()


@pytest.fixture(scope='module')
def cpu():
    """Program name -> its traffic, on CPU."""
    done = python('-m', 'tests.costs.test_hlo', devices=DEVICES)
    assert done.code == 0, done.err
    return {name: Program(t).traffic() for name, t in json.loads(done.out).items()}


def test_each_kind_and_its_bytes(cpu):
    traffic = cpu['one_of_each']
    assert traffic.count == Counter(dict.fromkeys(EACH, 1))
    assert traffic.bytes == Counter(EACH)


def test_a_loop_sends_as_often_as_it_runs(cpu):
    traffic = cpu['in_a_loop']
    assert traffic.count == Counter(dict.fromkeys(EACH, TRIPS))
    assert traffic.bytes == Counter({kind: TRIPS * size for kind, size in EACH.items()})
    assert not traffic.unknown_loops


def test_several_arrays_in_a_collective(cpu):
    assert cpu['pair'].bytes == {'all-reduce': SHARE * 3 // 2}


def test_one_after_the_other(cpu):
    assert cpu['twice'].count == {'all-reduce': 2}
    assert cpu['twice'].bytes == {'all-reduce': 2 * SHARE}


def test_a_loop_of_unknown_length_is_reported_and_counts_once(cpu):
    traffic = cpu['until_small']
    assert traffic.unknown_loops == 1
    assert traffic.bytes['all-reduce'] == SHARE


# Asynchronous collectives as XLA writes them for GPUs: the start returns its operand and result.
ASYNC = """
ENTRY %main.1 (p: f32[8,128]) -> f32[64,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %start = (f32[8,128]{1,0}, f32[64,128]{1,0}) all-gather-start(%p), channel_id=1, dimensions={0}
  %done = f32[64,128]{1,0} all-gather-done(%start)
  %sum = f32[64,128]{1,0} all-reduce-start(%done), channel_id=2, to_apply=%add
  ROOT %out = f32[64,128]{1,0} all-reduce-done(%sum)
}
"""


def test_start_and_done_count_once():
    traffic = Program(ASYNC).traffic()
    assert traffic.count == {'all-gather': 1, 'all-reduce': 1}
    assert traffic.bytes == {'all-gather': 64 * 128 * 4, 'all-reduce': 64 * 128 * 4}


@pytest.mark.parametrize(
    ('array', 'size'),
    [
        ('f32[8,128]', 4096), ('bf16[3]', 6), ('s4[5]', 3), ('u4[4,2]', 4), ('pred[7]', 7),
        ('f32[]', 4), ('f32[0,8]', 0), ('f8e4m3fn[3]', 3), ('c64[3]', 24),
    ],
)  # fmt: skip
def test_bytes_of_an_array(array, size):
    """An array of 4-bit numbers is rounded up to whole bytes."""
    line = f'ENTRY %main (p: {array}) -> {array} {{\n  %p = {array} parameter(0)\n'
    line += f'  ROOT %sum = {array} all-reduce(%p), channel_id=1, to_apply=%add\n}}\n'
    assert Program(line).traffic().bytes['all-reduce'] == size


# The TPU compiler spreads one collective over several fusions, to overlap it with a product.
SPREAD = """
%begin (a: bf16[4,8]) -> bf16[4,64] {
  %a = bf16[4,8]{1,0} parameter(0)
  %g.1 = bf16[4,64]{1,0} all-gather(%a), channel_id=8, dimensions={1}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %c.1 = (bf16[4,64]{1,0}, u32[]{:S(2)}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%end (b: bf16[4,8]) -> bf16[4,64] {
  %b = bf16[4,8]{1,0} parameter(0)
  %g.2 = bf16[4,64]{1,0} all-gather(%b), channel_id=8, dimensions={1}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %c.2 = bf16[4,64]{1,0} custom-call(%g.2), custom_call_target="AsyncCollectiveDone"
}

%body (s: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %s = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,8]{1,0} get-tuple-element(%s), index=1
  %one = bf16[4,64]{1,0} fusion(%x), kind=kCustom, calls=%begin, backend_config={"w":{"estimated_cycles":"70"}}
  %two = bf16[4,64]{1,0} fusion(%x), kind=kCustom, calls=%end
  ROOT %t = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%i, %x)
}

%condition (s: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %s = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (p: bf16[4,8]) -> bf16[4,8] {
  %zero = s32[]{:T(128)} constant(2)
  %from = s32[]{:T(128)} copy(%zero)
  %p = bf16[4,8]{1,0} parameter(0)
  %both = (s32[]{:T(128)}, /*index=1*/bf16[4,8]{1,0}) tuple(%from, %p)
  %loop = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%both), condition=%condition, body=%body
  ROOT %out = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_one_collective_in_several_fusions_and_a_loop_without_a_count():
    traffic = Program(SPREAD).traffic()
    assert traffic.count == {'all-gather': 5}
    assert traffic.bytes == {'all-gather': 5 * 4 * 64 * 2}
    assert traffic.cycles == 5 * 70


@needs_libtpu
def test_tpu_programs_give_the_same(cpu):
    from jaxtrain.costs.topology import devices

    for program in (in_a_loop, twice):
        traffic = Program(text(program, devices('v5e:2x4'))).traffic()
        assert (traffic.count, traffic.bytes) == (
            cpu[program.__name__].count,
            cpu[program.__name__].bytes,
        )


@needs_libtpu
def test_a_sum_whose_parts_stay_on_the_devices_is_a_reduce_scatter():
    """The TPU compiler writes it as an all-reduce inside a fusion."""
    from jaxtrain.costs.topology import devices

    mesh, size = Mesh(np.array(devices('v5e:2x4')), ('d',)), 1024
    x = jax.ShapeDtypeStruct((size, size), jnp.float32, sharding=NamedSharding(mesh, P('d')))
    product = jax.jit(lambda x: x.T @ jnp.sin(x), out_shardings=NamedSharding(mesh, P('d')))
    traffic = Program(product.lower(x).compile().as_text()).traffic()
    assert traffic.bytes == {'reduce-scatter': size * size * 4}


@needs_libtpu
def test_cycles_of_a_product_are_those_of_the_matrix_units():
    from jaxtrain.costs.chips import chip_of
    from jaxtrain.costs.topology import devices

    device = devices('v5e:2x2')[0]
    mesh, size = Mesh(np.array([device]), ('d',)), 2048
    x = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=NamedSharding(mesh, P()))

    def powers(length: int, x: jax.Array) -> jax.Array:
        return lax.scan(lambda c, _: (c @ x, None), x, None, length=length)[0]

    cycles = {}
    for length in (4, 8):
        compiled = jax.jit(partial(powers, length)).lower(x).compile()
        cycles[length] = Program(compiled.as_text()).traffic().cycles
    assert cycles[8] == pytest.approx(2 * cycles[4], rel=0.05)
    seconds = cycles[4] / chip_of(device).clock
    assert 0.5 < 4 * 2 * size**3 / seconds / chip_of(device).peak_bf16_flops <= 1


if __name__ == '__main__':
    print(json.dumps({p.__name__: text(p, jax.devices()) for p in PROGRAMS}))
