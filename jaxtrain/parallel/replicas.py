"""What a step does about the devices that it is shared out to.

Under jit it sees the whole batch and there is nothing to do (`WHOLE`), but where parameters are cut
over devices: there activations are held to their rows, lest the compiler cut them as it pleases
and gather a batch instead of a layer.

Under pmap it sees one device's rows. So that it computes the same numbers all the same, what
depends on the whole batch is done to the whole batch: augmentation, whose random numbers go by
position in it (and which mixes images), on the gathered uint8 images; the masks of dropout; sums
over examples. BatchNorm has an axis of its own for that (`models`).
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
    mesh: the devices, where parameters are cut over some of them.
    """

    axis: str = ''
    mesh: Mesh | None = None

    def gather(self, batch: Any) -> Any:
        """Arrays of this device's rows -> of all rows."""
        if not self.axis:
            return batch
        return jax.tree.map(lambda x: lax.all_gather(x, self.axis, tiled=True), batch)

    def own(self, batch: Any) -> Any:
        """Arrays of all rows -> of this device's."""
        if not self.axis:
            return batch
        return jax.tree.map(self._rows, batch)

    def sum(self, tree: Any) -> Any:
        """The sum over devices of what each computed of its rows."""
        return lax.psum(tree, self.axis) if self.axis else tree

    def layers(self, rows: int) -> contextlib.AbstractContextManager:
        """Context for `model.apply` to a batch of so many rows (under pmap, of this device's)."""
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
        """A row is dropped from as in a batch of all rows."""
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
    """For a step on this mesh, compiled by 'jit' or 'pmap'."""
    if parallel == 'pmap':
        return Replicas(axis=PMAP_AXIS)
    return WHOLE if mesh.shape['data'] == mesh.size else Replicas(mesh=mesh)
