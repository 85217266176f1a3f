"""Floating point operations of a function, counted in its jaxpr.

The compiler's own count includes the body of a loop once, however often it runs. Here it is
multiplied by the length of the scan, so that a model counts the same with scanned layers as without
a scan. No compilation is needed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

# Primitives that only move, create, compare or name data. Random bits are integer arithmetic.
FREE = {
    'broadcast', 'broadcast_in_dim', 'reshape', 'transpose', 'squeeze', 'expand_dims', 'slice',
    'dynamic_slice', 'dynamic_update_slice', 'concatenate', 'pad', 'rev', 'gather', 'scatter',
    'iota', 'convert_element_type', 'copy', 'copy_p', 'bitcast_convert_type', 'stop_gradient',
    'optimization_barrier', 'device_put', 'sharding_constraint', 'reshard', 'pvary', 'split',
    'empty', 'empty2', 'create_token', 'name', 'select_n', 'platform_index', 'axis_index',
    'psum', 'psum_invariant', 'pmax', 'pmin', 'all_gather', 'all_gather_invariant',
    'all_to_all', 'ppermute', 'reduce_scatter', 'psum_scatter', 'eq', 'ne', 'lt', 'le', 'gt',
    'ge', 'and', 'or', 'not', 'xor', 'sort', 'random_bits', 'random_seed', 'random_wrap',
    'random_unwrap', 'random_fold_in', 'random_split', 'random_clone', 'threefry2x32',
    'shift_left', 'shift_right_logical', 'shift_right_arithmetic',
}  # fmt: skip
# These count one operation per input value, all others one per output value.
PER_INPUT = ('reduce_', 'argmax', 'argmin', 'cum', 'select_and_', 'scatter')
CALLED = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')


@dataclass(frozen=True)
class Flops:
    """Operations of one call, over all devices.

    Attributes:
      matmul: operations of matrix products and convolutions; a multiply-add counts as 2.
      other: all other operations on values, each counted as 1. This is a rough figure: the compiler
        fuses many of them, and gives some (an exponential) another weight.
      unknown_loops: whether there are loops whose length depends on the data; these count once.
    """

    matmul: float = 0.0
    other: float = 0.0
    unknown_loops: bool = False

    def __add__(self, more: 'Flops') -> 'Flops':
        return Flops(
            self.matmul + more.matmul,
            self.other + more.other,
            self.unknown_loops or more.unknown_loops,
        )

    def __mul__(self, times: int) -> 'Flops':
        return Flops(self.matmul * times, self.other * times, self.unknown_loops)


def count(fun: Callable[..., Any], *args: Any) -> Flops:
    """Counts the operations of a function by tracing it; nothing is compiled.

    Args:
      fun: any function that JAX can trace.
      args: its arguments: arrays, or pytrees of ShapeDtypeStructs.

    Returns:
      The operations of one call. Operations that the program repeats count each time, also layers
      that are recomputed to save memory (remat). Operations whose results are unused do not count.
    """
    return of_jaxpr(jax.make_jaxpr(fun)(*args))


def of_jaxpr(jaxpr: Any) -> Flops:
    """Counts a jaxpr, which is traced already; see `count`."""
    return _jaxpr(jaxpr)


def _jaxpr(jaxpr: Any, used: Sequence[bool] = ()) -> Flops:
    """Counts a jaxpr, closed or not; `used` marks the results that are used, () means all."""
    jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
    # Kernels have no results, but write into their arguments.
    used = used if len(used) == len(jaxpr.outvars) else [True] * len(jaxpr.outvars)
    results = zip(jaxpr.outvars, used, strict=True)
    live, total = {id(v) for v, is_used in results if is_used}, Flops()
    for eqn in reversed(jaxpr.eqns):
        used = [id(v) in live for v in eqn.outvars]
        if any(used) or eqn.effects:
            live |= {id(v) for v in eqn.invars}
            total += _equation(eqn, used)
    return total


def _equation(eqn: Any, used: Sequence[bool]) -> Flops:
    name, params = eqn.primitive.name, eqn.params
    if name in FLOPS:
        return Flops(matmul=FLOPS[name](eqn))
    if name == 'scan':
        return _jaxpr(params['jaxpr']) * params['length']
    if name == 'while':
        once = _jaxpr(params['cond_jaxpr']) + _jaxpr(params['body_jaxpr'])
        return once + Flops(unknown_loops=True)
    if name == 'cond':
        # The choice between platforms is a cond as well, and one branch of it is compiled.
        return max(map(_jaxpr, params['branches']), key=lambda f: (f.matmul, f.other))
    if name == 'shard_map':
        # Shapes inside are those on one device.
        axes = params['manual_axes'] if 'manual_axes' in params else params['mesh'].axis_names
        return _jaxpr(params['jaxpr']) * math.prod(params['mesh'].shape[axis] for axis in axes)
    if name == 'xla_pmap':
        return _jaxpr(params['call_jaxpr']) * params['global_axis_size']
    per_input = name.startswith(PER_INPUT) and name != 'reduce_precision'
    called = None if per_input else next((params[k] for k in CALLED if k in params), None)
    if called is not None:
        return _jaxpr(called, used)
    if name in FREE:
        return Flops()
    values = eqn.invars[:1] if per_input else eqn.outvars
    return Flops(other=float(sum(math.prod(v.aval.shape) for v in values)))


def _dot_general(eqn: Any) -> float:
    (contracted, _), _ = eqn.params['dimension_numbers']
    lhs = eqn.invars[0].aval.shape
    depth = math.prod(lhs[d] for d in contracted)
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * depth


def _conv_general_dilated(eqn: Any) -> float:
    """Kernel taps on padding, or between the values of a dilated input, do not count."""
    p, (lhs, rhs) = eqn.params, (v.aval.shape for v in eqn.invars)
    out, numbers = eqn.outvars[0].aval.shape, p['dimension_numbers']
    axes = zip(
        (lhs[d] for d in numbers.lhs_spec[2:]),
        (rhs[d] for d in numbers.rhs_spec[2:]),
        (out[d] for d in numbers.out_spec[2:]),
        p['window_strides'],
        p['padding'],
        p['lhs_dilation'],
        p['rhs_dilation'],
        strict=True,
    )
    taps = 1  # (output, kernel) positions that read an input value
    for size, window, outputs, stride, (low, _), dilation, spread in axes:
        places = np.arange(outputs)[:, None] * stride + np.arange(window)[None] * spread - low
        on_value = (places >= 0) & (places % dilation == 0) & (places // dilation < size)
        taps *= int(on_value.sum())
    batch = lhs[numbers.lhs_spec[0]] // p['batch_group_count']
    # The kernel's input channels are those of one group.
    return 2.0 * taps * batch * rhs[numbers.rhs_spec[0]] * rhs[numbers.rhs_spec[1]]


def _attention(eqn: Any) -> float:
    """cuDNN's fused attention: the scores, and their product with the values.

    Query and key are [batch, length, heads, size]. Positions that a causal mask excludes count, as
    they do without fusion.
    """
    query, key = (v.aval.shape for v in eqn.invars[:2])
    return 4.0 * math.prod(query) * key[1]


FLOPS = {
    'dot_general': _dot_general,
    'conv_general_dilated': _conv_general_dilated,
    'dot_product_attention_fwd_wrapper': _attention,
    'dot_product_attention_bwd_wrapper': lambda eqn: 2 * _attention(eqn),
}
