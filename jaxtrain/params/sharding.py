"""Sharding of parameters: rules -> a mesh axis for each dimension; optimizer state follows.

Parameters are sharded over `fsdp` to save memory, and gathered when a layer needs them (Rajbhandari
et al. 2019, arXiv:1910.02054, stage 3). The work of a layer is sharded over `tensor`, by heads and
hidden units (Shoeybi et al. 2019, arXiv:1909.08053), so that a pair of layers needs one sum over
devices.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtrain.config import rules
from jaxtrain.errors import UserError
from jaxtrain.params.partition import flatten

AUTO, REPLICATED, UNSHARDED = 'auto', 'replicated', '-'
PARAMETER_AXES = ('fsdp', 'tensor')


def make_specs(
    rule_list: tuple, mesh: Mesh, params: Any, tensor: Sequence[tuple[str, int]]
) -> dict[str, PartitionSpec]:
    """Parameter path -> its sharding.

    Args:
      rule_list: `config.mesh.rules`.
      mesh: the devices.
      params: nested parameters (arrays or ShapeDtypeStructs).
      tensor: the model's pairs (regex over the parameter path, dimension that 'auto' shards over
        `tensor`).

    Raises:
      UserError: a malformed rule, a rule that does not fit a parameter's shape or matches no
        parameter, or a mesh axis of several devices over which no parameter is sharded.
    """
    parsed = rules.parse(rule_list, 'config.mesh.rules', str)
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    texts = rules.assign(parsed, shapes, 'config.mesh.rules')
    specs = {
        path: _auto(path, shape, mesh, tensor)
        if texts[path] == AUTO
        else _spec(texts[path], path, shape, mesh)
        for path, shape in shapes.items()
    }
    for axis in PARAMETER_AXES:
        if mesh.shape[axis] > 1 and not any(axis in spec for spec in specs.values()):
            raise UserError(
                f'config.mesh.{axis}={mesh.shape[axis]}: no parameter is sharded over it; set it '
                f'to 1, or name the dimensions to shard in config.mesh.rules'
            )
    return specs


def like_params(tree: Any, specs: Mapping[str, PartitionSpec], params: Any, mesh: Mesh) -> Any:
    """Adds shardings to abstract leaves.

    A leaf whose path ends with a parameter's path and that has its shape (an optimizer's moment, a
    moving average) is sharded like the parameter; all others are replicated.

    Args:
      tree: any pytree of ShapeDtypeStructs, such as a TrainState.
      specs: the result of `make_specs`.
      params: the nested parameters.
      mesh: the devices.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}

    def place(keys: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        path = path_of(keys)
        spec = specs[path] if shapes.get(path) == leaf.shape else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, tree)


def to_text(spec: PartitionSpec) -> str:
    """A spec as text for the parameter table, in the syntax of the rules."""
    return ' '.join(axis or UNSHARDED for axis in spec) if any(spec) else REPLICATED


def nbytes_per_device(tree: Any) -> int:
    """Bytes per device of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def path_of(keys: tuple) -> str:
    """The dict keys at the end of a key path, joined with '/': for moments of an optimizer and for
    moving averages, the path of the parameter.
    """
    names: list[str] = []
    for key in reversed(keys):
        if not isinstance(key, jax.tree_util.DictKey):
            break
        names.append(str(key.key))
    return '/'.join(reversed(names))


def _spec(text: str, path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    if text == REPLICATED:
        return PartitionSpec()
    axes = [None if word == UNSHARDED else word for word in text.split()]
    known = {*PARAMETER_AXES, None}
    if (
        len(axes) != len(shape)
        or not set(axes) <= known
        or len({*axes} - {None}) < sum(axis is not None for axis in axes)
    ):
        raise UserError(
            f'config.mesh.rules: {text!r} does not fit {path} of shape '
            f'{"x".join(map(str, shape)) or "scalar"}; write one word per dimension, '
            f"from 'fsdp', 'tensor' (each at most once) and '-', or 'auto', or 'replicated'"
        )
    for axis, size in zip(axes, shape, strict=True):
        if axis and size % mesh.shape[axis]:
            raise UserError(
                f'config.mesh.rules: {text!r} shards {size} of {path} over '
                f"config.mesh.{axis}={mesh.shape[axis]}, which does not divide it; write '-' there"
            )
    return PartitionSpec(*axes)


def _auto(
    path: str, shape: tuple[int, ...], mesh: Mesh, tensor: Sequence[tuple[str, int]]
) -> PartitionSpec:
    """Shards the declared dimension over `tensor`, and the longest other one over `fsdp`.

    Biases and norms are not sharded over `fsdp`: they are small, and each gather is a message.
    """
    axes: list[str | None] = [None] * len(shape)
    matches = (d for pattern, d in tensor if re.fullmatch(pattern, path))
    dim = next(matches, None)
    if dim is not None and mesh.shape['tensor'] > 1 and shape[dim] % mesh.shape['tensor'] == 0:
        axes[dim] = 'tensor'
    if mesh.shape['fsdp'] > 1 and len(shape) > 1 and not path.endswith('bias'):
        free = [d for d, size in enumerate(shape) if not axes[d] and size % mesh.shape['fsdp'] == 0]
        if free:
            axes[max(free, key=lambda d: (shape[d], d))] = 'fsdp'
    return PartitionSpec(*axes) if any(axes) else PartitionSpec()
