"""Devices -> mesh, and how batches lie on it.

The mesh has three axes. Each batch is shared out over `data` and `fsdp`, by all devices of all
processes; parameters and optimizer state are cut over `fsdp` and `tensor` (sharding.py), which by
default are of one device, so that the state is replicated. The compiler inserts the sums: a step
computes the same numbers on any mesh, up to the order of additions.
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

    Slices of a pod, which a slower network joins, are told apart along `data` alone.

    Args:
      sizes: of the axes, -1 for what the others leave; by default all devices are on `data`.
      devices: () takes all devices of all processes.

    Raises:
      UserError: axes that do not make up the number of devices, or slices that they straddle.
    """
    devices = list(devices) or jax.devices()
    shape = _filled(sizes, len(devices))
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if shape[0] % slices:
        raise UserError(
            f'config.mesh.data={shape[0]} cannot be shared by the {slices} slices; fsdp and tensor '
            'must divide the devices of a slice'
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
    """The sizes of the axes, with the -1 among them filled."""
    said = ', '.join(f'{axis}={size}' for axis, size in zip(AXES, wanted, strict=True))
    if wanted.count(-1) > 1 or any(size < 1 and size != -1 for size in wanted):
        raise UserError(f'config.mesh: {said}: each is 1 or more, and one of them may be -1')
    known = math.prod(size for size in wanted if size != -1)
    if devices % known or (-1 not in wanted and known != devices):
        raise UserError(
            f'config.mesh: {said} does not make up the {devices} devices; let data=-1 take the '
            'rest, and fsdp and tensor divide them'
        )
    return tuple(devices // known if size == -1 else size for size in wanted)


def batch_shares(mesh: Mesh) -> int:
    """In how many parts a batch is shared out."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, steps: int = 1) -> NamedSharding:
    """Examples shared out; the batches of several steps have an axis of steps before that."""
    spec = PartitionSpec(BATCH_AXES) if steps == 1 else PartitionSpec(None, BATCH_AXES)
    return NamedSharding(mesh, spec)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, steps: int = 1) -> dict[str, jax.Array]:
    """This process's share of a batch, or of several steps' -> the global batch on the devices."""
    sharding = batch_sharding(mesh, steps)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def abstract_batch(
    features: Mapping[str, Feature],
    batch_size: int,
    mesh: Mesh,
    steps: int = 1,
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a global batch looks like, for examples with these features.

    Those of several steps are [steps, batch_size, ...]; that of one has no such axis.
    """
    sharding = batch_sharding(mesh, steps)
    shape = (batch_size,) if steps == 1 else (steps, batch_size)
    return {
        name: jax.ShapeDtypeStruct((*shape, *own.shape), own.dtype, sharding=sharding)
        for name, own in features.items()
    }


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Abstract leaves, said to be replicated over the mesh."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
