"""Compiling a step for a mesh, and the cache of compiled programs."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtrain.costs import flops
from jaxtrain.parallel.layout import Layout
from jaxtrain.parallel.mesh import BATCH_AXES, PMAP_AXIS, replicated


def use_compilation_cache() -> None:
    """Caches compiled programs on disk, so that a restart compiles nothing.

    The directory is $JAX_COMPILATION_CACHE_DIR, by default ~/.cache/jaxtrain/xla.
    """
    default = Path.home() / '.cache' / 'jaxtrain' / 'xla'
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR', str(default))
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


@dataclass(frozen=True)
class Compiled:
    """A compiled train step.

    Attributes:
      call: the executable.
      flops: floating-point operations of one call over all devices: those of the matrix products
        and convolutions in its jaxpr (costs/flops.py).
    """

    call: Callable[..., Any]
    flops: float


@dataclass(frozen=True)
class Traced:
    """A traced step.

    Attributes:
      jaxpr: the computation over all devices.
      lower: () -> the computation as StableHLO, ready to be compiled.
    """

    jaxpr: Any
    lower: Callable[[], jax.stages.Lowered]


def trace_step(step: Callable, state: Any, batch: Any, layout: Layout) -> Traced:
    """Traces a train step, which donates the buffers of its state.

    Args:
      step: `(state, batch) -> (state, metrics)`: the state keeps its sharding, metrics are
        replicated.
      state, batch: abstract values with shardings.
      layout: the devices, and whether jit or pmap compiles the step.
    """
    mesh = layout.mesh
    if layout.parallel == 'pmap':
        axis = _batch_axis(batch)
        mapped = jax.pmap(
            step, PMAP_AXIS, in_axes=(None, axis), out_axes=(None, None),
            devices=list(mesh.devices.flat), donate_argnums=(0,),
        )  # fmt: skip
        batch = jax.eval_shape(lambda b: _by_device(b, mesh, axis), batch)
        return Traced(
            jax.make_jaxpr(mapped)(state, batch), functools.partial(mapped.lower, state, batch)
        )
    out = (jax.tree.map(lambda x: x.sharding, state), replicated(mesh))
    traced = jax.jit(step, out_shardings=out, donate_argnums=(0,)).trace(state, batch)
    return Traced(traced.jaxpr, traced.lower)


def compile_train_step(step: Callable, state: Any, batch: Any, layout: Layout) -> Compiled:
    """Compiles a train step ahead of its first call; the arguments are those of `trace_step`."""
    traced = trace_step(step, state, batch, layout)
    compiled, operations = traced.lower().compile(), flops.of_jaxpr(traced.jaxpr).matmul
    if layout.parallel == 'jit':
        return Compiled(compiled, operations)
    axis = _batch_axis(batch)
    share = jax.jit(lambda b: _by_device(b, layout.mesh, axis))
    return Compiled(lambda state, batch: compiled(state, share(batch)), operations)


def compile_step(step: Callable, state: Any, batch: Any, mesh: Mesh) -> jax.stages.Compiled:
    """Compiles a step that only reads the state; its result is replicated."""
    return jax.jit(step, out_shardings=replicated(mesh)).lower(state, batch).compile()


def _batch_axis(batch: Any) -> int:
    """The axis of examples: 1 if there is a leading step axis, else 0."""
    return len(jax.tree.leaves(batch)[0].sharding.spec) - 1


def _by_device(batch: Any, mesh: Mesh, axis: int) -> Any:
    """Splits the axis of examples into devices and examples per device, as pmap expects."""
    spec = PartitionSpec(*[None] * axis, BATCH_AXES)

    def split(x: jax.Array) -> jax.Array:
        parts = x.reshape(*x.shape[:axis], mesh.size, -1, *x.shape[axis + 1 :])
        return jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, spec))

    return jax.tree.map(split, batch)
