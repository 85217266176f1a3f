"""The mesh of devices, and the sharding of batches over it.

The mesh covers all devices of all processes and has three axes. Each batch is sharded over `data`
and `fsdp`. Parameters and optimizer state are sharded over `fsdp` and `tensor`, which have one
device by default, so that the state is replicated (params/sharding.py). The compiler inserts the
sums: a step computes the same numbers on any mesh, up to the order of additions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtrain.data.features import Feature
from jaxtrain.errors import UserError

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')
PMAP_AXIS = 'data'


def make_mesh(sizes: Sequence[int] = (-1, 1, 1), devices: Sequence[jax.Device] = ()) -> Mesh:
    """The mesh that `config.mesh` describes, with the axes of `AXES`.

    Slices of a pod are connected by a slower network, so they are split along `data` only.

    Args:
      sizes: sizes of the axes; -1 means the devices that the other axes leave. By default all
        devices are on `data`.
      devices: the devices; () means all devices of all processes.

    Raises:
      UserError: the sizes do not fit the number of devices, or `fsdp` or `tensor` would span
        slices.
    """
    devices = list(devices) or jax.devices()
    shape = _filled(sizes, len(devices))
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if shape[0] % slices:
        raise UserError(
            f'config.mesh.data={shape[0]} is not a multiple of the {slices} slices; fsdp and '
            'tensor must divide the devices of a slice'
        )
    if devices[0].platform != 'tpu':
        return Mesh(np.asarray(devices).reshape(shape), AXES)
    # Neighbours on the mesh should be neighbours in the torus.
    options: dict[str, Any] = {'devices': devices, 'allow_split_physical_axes': True}
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(shape, **options), AXES)
    inside = (shape[0] // slices, *shape[1:])
    return Mesh(mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), **options), AXES)


def _filled(wanted: Sequence[int], devices: int) -> tuple[int, ...]:
    """The sizes of the axes, with -1 replaced by the remaining devices."""
    text = ', '.join(f'{axis}={size}' for axis, size in zip(AXES, wanted, strict=True))
    if wanted.count(-1) > 1 or any(size < 1 and size != -1 for size in wanted):
        raise UserError(f'config.mesh: {text}: each must be 1 or more, and one of them may be -1')
    known = math.prod(size for size in wanted if size != -1)
    if devices % known or (-1 not in wanted and known != devices):
        problem = 'which does not divide the' if -1 in wanted else 'but there are'
        raise UserError(
            f'config.mesh: {text} multiplies to {known}, {problem} {devices} devices; set data=-1 '
            'for the rest, and fsdp and tensor to numbers that divide them'
        )
    return tuple(devices // known if size == -1 else size for size in wanted)


def batch_shares(mesh: Mesh) -> int:
    """The number of parts that a batch is sharded into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, steps: int = 1) -> NamedSharding:
    """Sharding of a batch over its examples; batches of several steps have a leading step axis."""
    spec = PartitionSpec(BATCH_AXES) if steps == 1 else PartitionSpec(None, BATCH_AXES)
    return NamedSharding(mesh, spec)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, steps: int = 1) -> dict[str, jax.Array]:
    """This process's part of a batch, or of the batches of several steps -> global arrays."""
    sharding = batch_sharding(mesh, steps)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def abstract_batch(
    features: Mapping[str, Feature],
    batch_size: int,
    mesh: Mesh,
    steps: int = 1,
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes, dtypes and shardings of a global batch of examples with these features.

    Arrays are [batch_size, ...] for one step and [steps, batch_size, ...] for several.
    """
    sharding = batch_sharding(mesh, steps)
    shape = (batch_size,) if steps == 1 else (steps, batch_size)
    return {
        name: jax.ShapeDtypeStruct((*shape, *feature.shape), feature.dtype, sharding=sharding)
        for name, feature in features.items()
    }


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Abstract leaves with a sharding that replicates them over the mesh."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
