"""Operations across the devices that run one step.

Under jit the step sees the whole batch and nothing has to be done (`WHOLE`), unless parameters are
sharded over devices. Then activations are constrained to be sharded by rows, since the compiler
could otherwise shard them differently and gather a batch instead of a layer.

Under pmap the step sees the rows of one device. To compute the same numbers, it applies to the
whole batch whatever depends on the whole batch: it augments the gathered uint8 images (augmentation
mixes images, and its random numbers depend on the position in the batch), draws dropout masks for
all rows, and sums over all devices. BatchNorm averages over devices itself (the field `axis` of
models).
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtrain.models import DROPOUTS
from jaxtrain.parallel.mesh import BATCH_AXES, PMAP_AXIS, batch_shares


@dataclass(frozen=True)
class Replicas:
    """Attributes:
    axis: the axis that pmap maps over; '' under jit.
    mesh: the devices, if parameters are sharded over some of them; else None.
    """

    axis: str = ''
    mesh: Mesh | None = None

    def gather(self, batch: Any) -> Any:
        """Arrays of this device's rows -> arrays of all rows."""
        if not self.axis:
            return batch
        return jax.tree.map(lambda x: lax.all_gather(x, self.axis, tiled=True), batch)

    def local_rows(self, batch: Any) -> Any:
        """Arrays of all rows -> arrays of this device's rows."""
        if not self.axis:
            return batch
        return jax.tree.map(self._rows, batch)

    def sum(self, tree: Any) -> Any:
        """The sum over devices."""
        return lax.psum(tree, self.axis) if self.axis else tree

    def layers(self, rows: int) -> contextlib.AbstractContextManager:
        """Context for `model.apply` to a batch of `rows` rows (under pmap, of this device)."""
        if self.axis:
            return nn.intercept_methods(self._dropout_of_whole_batch)
        mesh = self.mesh
        if mesh is None or rows % batch_shares(mesh):
            return contextlib.nullcontext()

        def keep(x: Any) -> Any:
            if not isinstance(x, jax.Array) or x.ndim < 2 or x.shape[0] != rows:
                return x
            spec = PartitionSpec(BATCH_AXES, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
            return lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

        def intercept(call, args, kwargs, context):
            return jax.tree.map(keep, call(*args, **kwargs))

        return nn.intercept_methods(intercept)

    def _dropout_of_whole_batch(self, call, args, kwargs, context):
        """Applies the masks that the same rows have in the whole batch."""
        drops = isinstance(context.module, DROPOUTS)
        if not drops or context.method_name != '__call__':
            return call(*args, **kwargs)
        x, *rest = args
        whole = jnp.ones((x.shape[0] * lax.axis_size(self.axis), *x.shape[1:]), x.dtype)
        return x * self._rows(call(whole, *rest, **kwargs))

    def _rows(self, x: jax.Array) -> jax.Array:
        count = x.shape[0] // lax.axis_size(self.axis)
        return lax.dynamic_slice_in_dim(x, lax.axis_index(self.axis) * count, count)


WHOLE = Replicas()


def make_replicas(mesh: Mesh, parallel: str) -> Replicas:
    """The operations for a step on this mesh that 'jit' or 'pmap' compiles."""
    if parallel == 'pmap':
        return Replicas(axis=PMAP_AXIS)
    return WHOLE if mesh.shape['data'] == mesh.size else Replicas(mesh=mesh)
