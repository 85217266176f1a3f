"""Weights that can be started from, under our paths and not read yet: a checkpoint of ours, or a
file from elsewhere seen through the map of its origin.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxtrain import checkpoint
from jaxtrain.bundle import USUAL, Bundle, of_run
from jaxtrain.config import Config, base, nearest
from jaxtrain.errors import UserError
from jaxtrain.models import make_model
from jaxtrain.partition import array_text, by_path, flatten, nbytes, unflatten, without_collection
from jaxtrain.state import abstract_variables
from jaxtrain.weights.archive import Archive, open_archive
from jaxtrain.weights.names import Match, their_shape, to_ours
from jaxtrain.weights.origins import ORIGINS

Leaves = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Stored:
    """Weights by path; a BatchNorm statistic's leaves out its collection (`batch_stats`).

    Attributes:
      where: the folder or file.
      leaves: shape and dtype of each. A key of a foreign file that its map does not know is among
        them under its own name.
      keys: path -> the key and form of what a foreign file has for it; {} for a checkpoint of ours.
      read: leaves by path, with shardings -> arrays by path. The shapes must be those stored.
      bundle: what the weights bring along; None for a checkpoint that is not in a run directory.
      ignored: keys of a foreign file that are no weights, with the reason; of several with the same
        reason the first stands for all.
    """

    where: str
    leaves: Leaves
    keys: Mapping[str, str]
    read: Callable[[Leaves], dict[str, jax.Array]]
    bundle: Bundle | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)


def open_stored(path: str, name: str, origin: str, model: str) -> Stored:
    """What `config.init_from` names.

    Args:
      path: a run directory; or, with an origin, a file or folder of weights.
      name: which checkpoint of a run: 'best', 'last' or a step.
      origin, model: as of `jaxtrain import`; both '' for a run directory.

    Raises:
      UserError: neither of them, or an origin without its model.
    """
    if origin or model:
        return of_file(origin, Path(path), model, 'config.restore.')
    if Path(path).is_file():
        raise UserError(
            f'config.init_from={path!r} is a file; say whence, in config.restore.origin and '
            f'config.restore.model (origins: {", ".join(ORIGINS)})'
        )
    return of_checkpoint(checkpoint.find(path, name, 'config.init_from'), of_run(path))


def of_checkpoint(folder: Path, bundle: Bundle | None = None) -> Stored:
    """A checkpoint of ours, as `checkpoint.find` returns it."""
    tree = checkpoint.read_metadata(folder)
    # A run that keeps a moving average hands that on; its frozen parameters have none.
    averaged = flatten(tree.get('ema', {}))
    statistics = {without_collection(key): key for key in flatten(tree.get('model_state', {}))}

    def read(wanted: Leaves) -> dict[str, jax.Array]:
        request: dict[str, dict] = {'params': {}, 'ema': {}, 'model_state': {}}
        for path, leaf in wanted.items():
            if path in statistics:
                request['model_state'][statistics[path]] = leaf
            else:
                request['ema' if path in averaged else 'params'][path] = leaf
        parts = {name: unflatten(leaves) for name, leaves in request.items() if leaves}
        values = checkpoint.read(folder, parts)
        found = {
            k: v for part in ('params', 'ema') for k, v in flatten(values.get(part, {})).items()
        }
        state = flatten(values.get('model_state', {}))
        return {**found, **{without_collection(key): value for key, value in state.items()}}

    leaves = by_path(tree['params'], tree.get('model_state', {}))
    return Stored(str(folder), leaves, {}, read, bundle)


def of_file(origin: str, path: Path, model: str, flag: str = '--') -> Stored:
    """Weights from elsewhere. Nothing is read but names, shapes and dtypes.

    Args:
      origin: of `weights.origins.ORIGINS`.
      path: the file, or the folder that it is in.
      model: one that the origin's map knows.
      flag: what stands before `model` where the user has given it, for messages.

    Raises:
      UserError: an origin or model that is not known, a file that cannot be read, or one whose
        arrays have not the shapes of that model; its `details` list them.
    """
    return open_foreign(origin, path, model, flag)[0]


def open_foreign(
    origin: str, path: Path, model: str, flag: str = '--'
) -> tuple[Stored, Match, tuple[Path, ...]]:
    """As `of_file`; the match and the files that hold the arrays besides."""
    _choose(origin, ORIGINS, 'origin')
    known = {name: module for module in ORIGINS[origin] for name in module.MODELS}
    _choose(model, known, f'{flag}model')
    with open_archive(path) as archive:
        match = known[model].match(archive, model)
        shapes = _shapes(match)
        if faults := _faults(archive, match, shapes):
            raise _misfit(archive, match, shapes, faults, known, model, flag)
        leaves, keys, ignored = _leaves(archive, match, shapes)
        files = archive.files
    bundle = Bundle(
        str(path), match.fields, {**USUAL, **(match.preprocessing or {})}, match.classes
    )
    rows = {part.path: found for found in match.rows for part in found.parts}

    def read(wanted: Leaves) -> dict[str, jax.Array]:
        out: dict[str, jax.Array] = {}
        with open_archive(path) as archive:
            for found in {id(rows[p]): rows[p] for p in wanted}.values():
                array = _finite(archive, found.theirs)
                for part, ours in to_ours(found, array, shapes).items():
                    if part in wanted:
                        out[part] = _put(ours, wanted[part])
        return out

    return Stored(str(path), leaves, keys, read, bundle, ignored), match, files


def target_model(match: Match) -> tuple[nn.Module, tuple[Any, Any]]:
    """The model that a file is for, and its abstract (params, model_state)."""
    c = base()
    c.model = dict(match.fields)
    made = make_model(Config(c.to_dict()).model, match.outputs or 1)
    return made, abstract_variables(made, match.inputs)


def _shapes(match: Match) -> dict[str, tuple[int, ...]]:
    """The shapes of that model's leaves, but for those of a head where the file has none."""
    leaves = by_path(*target_model(match)[1])
    return {p: x.shape for p, x in leaves.items() if match.outputs or not p.startswith('head/')}


def _choose(word: str, known: Mapping, what: str) -> None:
    if word not in known:
        raise UserError(
            f'{what} {word!r} is not known{nearest(word, known)}; choose from {", ".join(known)}'
        )


@dataclass(frozen=True)
class _Fault:
    """An array of the map that the file lacks ('-'), or has in another shape or of no float."""

    key: str
    found: str
    wanted: str


def _faults(archive: Archive, match: Match, shapes: Mapping) -> list[_Fault]:
    faults = []
    for found in match.rows:
        wanted, there = their_shape(found, shapes), archive.arrays.get(found.theirs)
        if there is None:
            faults.append(_Fault(found.theirs, '-', array_text(wanted, 'float')))
        elif there.shape != wanted or not jnp.issubdtype(there.dtype, jnp.floating):
            text = array_text(there.shape, there.dtype)
            faults.append(_Fault(found.theirs, text, array_text(wanted, 'float')))
    return faults


def _misfit(
    archive: Archive,
    match: Match,
    shapes: Mapping,
    faults: list[_Fault],
    known: Mapping,
    model: str,
    flag: str,
) -> UserError:
    """What to say of a file that does not hold this model whole."""
    others = [name for name in known if name != model and _fits(archive, known[name], name)]
    if others:
        return UserError(
            f'{archive.path} holds {others[0]}, and not {model}; give {flag}model={others[0]}'
        )
    fault, total = faults[0], len(match.rows)
    if len(faults) == total and all(f.found == '-' for f in faults):
        reason = (
            f'none of its {len(archive.arrays)} keys is one of {model} ({_few(archive.arrays)})'
        )
    elif fault.found == '-':
        spare = [key for key in archive.arrays if key not in {r.theirs for r in match.rows}]
        reason = f'{len(faults)} of {total} arrays, first {fault.key} {fault.wanted}, are missing'
        reason += nearest(fault.key, spare)
    else:
        reason = (
            f'{len(faults)} of {total} arrays do not fit {model}, first {fault.key}, which is '
            f'{fault.found} and should be {fault.wanted}'
        )
    return UserError(
        f'{archive.path}: {reason}; give the whole weights of that model, or another {flag}model',
        details='\n'.join(f'  {f.key}: {f.found}, should be {f.wanted}' for f in faults),
    )


def _fits(archive: Archive, module, model: str) -> bool:
    try:
        match = module.match(archive, model)
        return not _faults(archive, match, _shapes(match))
    except UserError:
        return False


def of_leftovers(archive: Archive, match: Match) -> tuple[list, list[str]]:
    """(what of the map does not fit the file, keys of the file that nothing has a word for)."""
    shapes = _shapes(match)
    faults = _faults(archive, match, shapes)
    leaves = {} if faults else _leaves(archive, match, shapes)[0]
    return faults, [key for key in leaves if key not in shapes]


def _leaves(
    archive: Archive, match: Match, shapes: Mapping
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, str], dict[str, str]]:
    """(leaves by path, path -> key and form in the file, keys that are no weights -> why)."""
    leaves, keys, ignored = {}, {}, {}
    for found in match.rows:
        there = archive.arrays[found.theirs]
        for part in found.parts:
            leaves[part.path] = jax.ShapeDtypeStruct(shapes[part.path], np.float32)
            keys[part.path] = f'{found.theirs} {array_text(there.shape, there.dtype)}'
    used = {found.theirs for found in match.rows}
    for key, leaf in archive.arrays.items():
        if key in used:
            continue
        reasons = [reason for pattern, reason in match.ignored if re.fullmatch(pattern, key)]
        if reasons:
            ignored.setdefault(reasons[0], []).append(key)
        else:
            leaves[key] = leaf
    return leaves, keys, {_and_others(names): reason for reason, names in ignored.items()}


def _and_others(names: list[str]) -> str:
    return names[0] + (f' and {len(names) - 1} more' if len(names) > 1 else '')


def _finite(archive: Archive, key: str) -> np.ndarray:
    """An array of the file. UserError if it holds a value that is no number."""
    array = archive.read(key)
    # Extremes, not isfinite of all: that would take another quarter of the array's memory.
    if array.size and not np.isfinite([float(array.min()), float(array.max())]).all():
        raise UserError(
            f'{archive.path}: {key} holds NaN or Inf; take weights from before the training that '
            'did so diverged'
        )
    return array


def _put(array: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """An array on the devices, in the leaf's dtype; copied once."""
    # JAX takes memory that is aligned to 64 bytes as its own, without a copy.
    memory = np.empty(nbytes(leaf) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    out = memory[start : start + nbytes(leaf)].view(leaf.dtype).reshape(leaf.shape)
    out[...] = array
    return jax.device_put(out, leaf.sharding, may_alias=True)


def _few(names: Mapping) -> str:
    return ', '.join(list(names)[:3]) + (' ...' if len(names) > 3 else '')
