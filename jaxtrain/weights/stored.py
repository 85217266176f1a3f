"""Weights that can be started from, under our paths and not read yet: a checkpoint of ours, or a
file from elsewhere seen through the map of its origin.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxtrain.checkpoints import checkpoint_files, checkpoint_list
from jaxtrain.config import Config, base
from jaxtrain.config.keys import PREPROCESSING
from jaxtrain.errors import UserError, nearest
from jaxtrain.models.parts.family import Family
from jaxtrain.params.partition import (
    array_text,
    by_path,
    flatten,
    nbytes,
    unflatten,
    without_collection,
)
from jaxtrain.step.learner import Variables, make_network
from jaxtrain.weights.bundle import Bundle, beside, of_run
from jaxtrain.weights.formats.archive import Archive, open_archive
from jaxtrain.weights.origins.names import Match, Part, Row, their_shape
from jaxtrain.weights.origins.origins import ORIGINS

Leaves = Mapping[str, jax.ShapeDtypeStruct]
THREADS = 2  # one reads from the file while another converts, checks and copies


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
    return of_checkpoint(checkpoint_list.find(path, name, 'config.init_from'), of_run(path))


def of_checkpoint(folder: Path, bundle: Bundle | None = None) -> Stored:
    """A checkpoint of ours, as `checkpoint_list.find` returns it."""
    tree = checkpoint_files.read_metadata(folder)
    # A run that keeps a moving average hands that on; its frozen parameters have none.
    averaged = flatten(tree.get('ema', {}))
    statistics = {without_collection(key): key for key in flatten(tree.get('model_state', {}))}

    def read(wanted: Leaves) -> dict[str, jax.Array]:
        if not wanted:
            return {}
        request: dict[str, dict] = {'params': {}, 'ema': {}, 'model_state': {}}
        for path, leaf in wanted.items():
            if path in statistics:
                request['model_state'][statistics[path]] = leaf
            else:
                request['ema' if path in averaged else 'params'][path] = leaf
        parts = {name: unflatten(leaves) for name, leaves in request.items() if leaves}
        values = checkpoint_files.read(folder, parts)
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
        str(path),
        match.fields,
        {**PREPROCESSING, **(match.preprocessing or {})},
        match.classes,
        beside(archive.folder),
    )
    rows = {part.path: found for found in match.rows for part in found.parts}

    def read(wanted: Leaves) -> dict[str, jax.Array]:
        out: dict[str, jax.Array] = {}
        # A key that the map does not know may be asked for under its own name.
        sources: dict[Row | str, list[str]] = {}
        for part in wanted:
            sources.setdefault(rows.get(part, part), []).append(part)
        with open_archive(path) as archive, ThreadPoolExecutor(THREADS) as pool:

            def load(source: Row | str) -> dict[str, jax.Array]:
                arrays = {part: _aligned(wanted[part]) for part in sources[source]}
                if isinstance(source, Row):
                    fill(archive, source, shapes, arrays)
                else:
                    _fill_alike(archive, source, arrays[source])
                return {
                    part: jax.device_put(array, wanted[part].sharding, may_alias=True)
                    for part, array in arrays.items()
                }

            for loaded in pool.map(load, sources):
                out |= loaded
        return out

    return Stored(str(path), leaves, keys, read, bundle, ignored), match, files


def target_model(match: Match) -> tuple[Family, Variables]:
    """The model that a file is for, and its abstract (params, model_state)."""
    c = base()
    c.model = dict(match.fields)
    return make_network(Config(c.to_dict()).model, match.outputs or 1, match.inputs)


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
        reason = f'none of its {len(archive.arrays)} keys is one of {model} ({few(archive.arrays)})'
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
        # Keys first: the shapes of a large model take a second.
        if any(found.theirs not in archive.arrays for found in match.rows):
            return False
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
    ignored: dict[str, list[str]] = {}
    leaves, keys = {}, {}
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


def fill(archive: Archive, found: Row, shapes: Mapping, arrays: Mapping[str, np.ndarray]) -> None:
    """Reads an array of theirs, piece by piece, into those of ours by path that lie in it."""
    places, high = [], 0
    for part in found.parts:
        low, high = high, high + their_shape(Row(found.theirs, (part,)), shapes)[found.axis]
        if part.path in arrays:
            places.append((low, high, _in_their_order(part, arrays[part.path])))
    first = 0
    for piece in _finite_pieces(archive, found.theirs, np.float32):
        for low, high, ours in places:
            if found.axis:
                at, taken = first, piece[(slice(None),) * found.axis + (slice(low, high),)]
            else:
                at, taken = max(first - low, 0), piece[max(low - first, 0) : max(high - first, 0)]
            ours = ours[at : at + len(taken)]
            ours[...] = taken.reshape(ours.shape)
        first += len(piece)


def _fill_alike(archive: Archive, key: str, array: np.ndarray) -> None:
    """Reads an array that lies as it does there."""
    flat, at = array.reshape(-1), 0
    for piece in _finite_pieces(archive, key, array.dtype):
        flat[at : at + piece.size] = piece.reshape(-1)
        at += piece.size


def _finite_pieces(archive: Archive, key: str, dtype: Any) -> Iterator[np.ndarray]:
    """The pieces of an array in a dtype. UserError if one holds a value that is no number."""
    for piece in archive.read(key):
        with np.errstate(over='ignore', invalid='ignore'):
            piece = piece.astype(dtype, copy=False)
            flat = piece.reshape(-1)
            # The sum of squares is a number if all are, unless it overflows; it takes a fifth of
            # the time.
            finite = np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all()
        if not finite:
            raise UserError(
                f'{archive.path}: {key} holds NaN or Inf (as {np.dtype(dtype)}); take weights from '
                'before the training that did so diverged'
            )
        yield piece


def _in_their_order(part: Part, array: np.ndarray) -> np.ndarray:
    """A view of our array with the axes of theirs: the first as it is, the others taken apart
    where they are in brackets, for no view could join them again.
    """
    ours, theirs = part.pattern.split('->')
    axes = re.fullmatch(r'\s*(\([^)]*\)|\S+)(.*)', theirs)
    assert axes is not None, part.pattern
    first, others = axes.groups()
    others = others.replace('(', ' ').replace(')', ' ')
    found = rearrange(array, f'{ours} -> {first} {others}', **dict(part.sizes))
    assert np.may_share_memory(found, array), f'{part.pattern}: what is written would be lost'
    return found


def _aligned(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Memory for a leaf, which JAX takes as its own and does not copy: aligned to 64 bytes."""
    memory = np.empty(nbytes(leaf) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes(leaf)].view(leaf.dtype).reshape(leaf.shape)


def few(names: Iterable[str]) -> str:
    """The first three of some names, and whether there are more: 'a, b, c ...'."""
    names = list(names)
    return ', '.join(names[:3]) + (' ...' if len(names) > 3 else '')
