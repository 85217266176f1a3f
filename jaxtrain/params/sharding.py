"""How parameters lie on the mesh: rules -> an axis for each dimension; optimizer state follows.

Over `fsdp` parameters are cut up to save memory, and gathered where a layer needs them (Rajbhandari
et al. 2019, arXiv:1910.02054, stage 3). Over `tensor` a layer's work is cut: heads and hidden units
(Shoeybi et al. 2019, arXiv:1909.08053), so that two layers in a row take one sum over devices.
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

AUTO, REPLICATED, UNCUT = 'auto', 'replicated', '-'
PARAMETER_AXES = ('fsdp', 'tensor')


def make_specs(
    rule_list: tuple, mesh: Mesh, params: Any, tensor: Sequence[tuple[str, int]]
) -> dict[str, PartitionSpec]:
    """Parameter path -> how it is cut.

    Args:
      rule_list: `config.mesh.rules`.
      mesh: the devices.
      params: nested parameters (arrays or ShapeDtypeStructs).
      tensor: (regex over the parameter path, its dimension that 'auto' cuts over `tensor`), as the
        model declares them.

    Raises:
      UserError: a rule that is none, that does not fit a parameter's shape, or that matches
        nothing; an axis of several devices over which nothing is cut.
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
                f'config.mesh.{axis}={mesh.shape[axis]}: no parameter is cut over it; set it to 1, '
                f'or name the dimensions to cut in config.mesh.rules'
            )
    return specs


def like_params(tree: Any, specs: Mapping[str, PartitionSpec], params: Any, mesh: Mesh) -> Any:
    """Abstract leaves with their shardings: those of a parameter's shape under its path (an
    optimizer's moments, a moving average) lie as the parameter does, all others are replicated.

    Args:
      tree: any pytree of ShapeDtypeStructs, such as a TrainState.
      specs: as `make_specs` returns them.
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
    """A spec for the parameter table, as one would write it in a rule."""
    return ' '.join(axis or UNCUT for axis in spec) if any(spec) else REPLICATED


def nbytes_per_device(tree: Any) -> int:
    """Bytes that a device holds of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def path_of(keys: tuple) -> str:
    """The dict keys at the end of a key path, joined as parameter paths are: of an optimizer's
    moments and of a moving average, the path of their parameter.
    """
    own: list[str] = []
    for key in reversed(keys):
        if not isinstance(key, jax.tree_util.DictKey):
            break
        own.append(str(key.key))
    return '/'.join(reversed(own))


def _spec(text: str, path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    if text == REPLICATED:
        return PartitionSpec()
    axes = [None if word == UNCUT else word for word in text.split()]
    known = {*PARAMETER_AXES, None}
    if (
        len(axes) != len(shape)
        or not set(axes) <= known
        or len({*axes} - {None}) < sum(axis is not None for axis in axes)
    ):
        raise UserError(
            f'config.mesh.rules: {text!r} does not fit {path} of shape '
            f'{"x".join(map(str, shape)) or "scalar"}; write one word per dimension, of '
            f"'fsdp', 'tensor' (each once at most) and '-', or 'auto', or 'replicated'"
        )
    for axis, size in zip(axes, shape, strict=True):
        if axis and size % mesh.shape[axis]:
            raise UserError(
                f'config.mesh.rules: {text!r} cuts {size} of {path} over '
                f"config.mesh.{axis}={mesh.shape[axis]}, which does not divide it; write '-' there"
            )
    return PartitionSpec(*axes)


def _auto(
    path: str, shape: tuple[int, ...], mesh: Mesh, tensor: Sequence[tuple[str, int]]
) -> PartitionSpec:
    """The layer's own dimension over `tensor`, and the longest other one over `fsdp`.

    Biases and norms are small and stay whole: to gather them costs a message each.
    """
    axes: list[str | None] = [None] * len(shape)
    cut = (d for pattern, d in tensor if re.fullmatch(pattern, path))
    own = next(cut, None)
    if own is not None and mesh.shape['tensor'] > 1 and shape[own] % mesh.shape['tensor'] == 0:
        axes[own] = 'tensor'
    if mesh.shape['fsdp'] > 1 and len(shape) > 1 and not path.endswith('bias'):
        free = [d for d, size in enumerate(shape) if not axes[d] and size % mesh.shape['fsdp'] == 0]
        if free:
            axes[max(free, key=lambda d: (shape[d], d))] = 'fsdp'
    return PartitionSpec(*axes) if any(axes) else PartitionSpec()
