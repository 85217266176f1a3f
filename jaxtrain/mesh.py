"""Devices -> mesh; how state and batches lie on it; compiling a step for it.

The mesh has one axis, `data`: the state is replicated, each batch is shared out over all devices of
all processes, and the compiler inserts the sums. A step therefore computes the same numbers on any
number of devices, up to the order of additions.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtrain.errors import UserError


def start_processes(coordinator: str, processes: int, process: int) -> None:
    """Joins this process to the others of a run, before any device is touched.

    Args:
      coordinator: 'host:port' of process 0; '' for a run of one process.
      processes: how many there are.
      process: number of this one, from 0.

    Raises:
      UserError: flags that do not fit together.
    """
    if not coordinator:
        if processes > 1 or process:
            raise UserError(
                f'--processes={processes} --process={process}: several processes need '
                '--coordinator=HOST:PORT of process 0'
            )
        return
    if not 0 <= process < processes:
        raise UserError(f'--process={process} must lie below --processes={processes}')
    jax.distributed.initialize(coordinator, processes, process)


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second start compiles nothing.

    They lie in $JAX_COMPILATION_CACHE_DIR, by default ~/.cache/jaxtrain/xla.
    """
    default = Path.home() / '.cache' / 'jaxtrain' / 'xla'
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR', str(default))
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def make_mesh() -> Mesh:
    """All devices of all processes on one axis, `data`."""
    return Mesh(np.asarray(jax.devices()), ('data',))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, steps: int = 1) -> NamedSharding:
    """Examples shared out; the batches of several steps have an axis of steps before that."""
    spec = PartitionSpec('data') if steps == 1 else PartitionSpec(None, 'data')
    return NamedSharding(mesh, spec)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, steps: int = 1) -> dict[str, jax.Array]:
    """This process's share of a batch, or of several steps' -> the global batch on the devices."""
    sharding = batch_sharding(mesh, steps)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def abstract_batch(
    features: Mapping[str, tuple[tuple[int, ...], type]],
    batch_size: int,
    mesh: Mesh,
    steps: int = 1,
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a global batch looks like, for examples with these features (`Source.features`).

    Those of several steps are [steps, batch_size, ...]; that of one has no such axis.
    """
    sharding = batch_sharding(mesh, steps)
    shape = (batch_size,) if steps == 1 else (steps, batch_size)
    return {
        name: jax.ShapeDtypeStruct((*shape, *own), dtype, sharding=sharding)
        for name, (own, dtype) in features.items()
    }


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Abstract leaves, said to be replicated over the mesh."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


@dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
      call: the executable.
      flops: floating point operations of one call over all devices, as the compiler counts them.
    """

    call: Callable[..., Any]
    flops: float


def compile_step(step: Callable, state: Any, batch: Any, mesh: Mesh, donate: bool) -> Compiled:
    """Compiles `step(state, batch)` with jit, ahead of its first call.

    Args:
      step: a pure function whose results are all replicated.
      state, batch: abstract values with their shardings.
      mesh: the devices.
      donate: whether the state's buffers may be reused for the result.
    """
    jitted = jax.jit(step, out_shardings=replicated(mesh), donate_argnums=(0,) if donate else ())
    compiled = jitted.lower(state, batch).compile()
    # The compiler reports the program of one device.
    costs = compiled.cost_analysis() or {}
    return Compiled(compiled, float(costs.get('flops', 0.0)) * mesh.size)
