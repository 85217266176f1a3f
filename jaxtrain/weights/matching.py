"""Compares a file of weights with the name map of its origin: arrays that fit, lack or are left."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.config import Config, base
from jaxtrain.errors import UserError, nearest
from jaxtrain.models.parts.family import Family
from jaxtrain.params.partition import array_text, by_path
from jaxtrain.step.learner import Variables, make_network
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins.names import Match, their_shape


def target_model(match: Match) -> tuple[Family, Variables]:
    """The model that a file is for, and its abstract (params, model_state)."""
    c = base()
    c.model = dict(match.fields)
    return make_network(Config(c.to_dict()).model, match.outputs or 1, match.inputs)


def shapes_of(match: Match) -> dict[str, tuple[int, ...]]:
    """The shapes of that model's leaves, but for those of a head where the file has none."""
    leaves = by_path(*target_model(match)[1])
    return {p: x.shape for p, x in leaves.items() if match.outputs or not p.startswith('head/')}


@dataclass(frozen=True)
class _Fault:
    """An array of the map that the file lacks ('-'), or has in another shape or of no float."""

    key: str
    found: str
    wanted: str


def faults_of(archive: Archive, match: Match, shapes: Mapping) -> list[_Fault]:
    faults = []
    for found in match.rows:
        wanted, there = their_shape(found, shapes), archive.arrays.get(found.theirs)
        if there is None:
            faults.append(_Fault(found.theirs, '-', array_text(wanted, 'float')))
        elif there.shape != wanted or not jnp.issubdtype(there.dtype, jnp.floating):
            text = array_text(there.shape, there.dtype)
            faults.append(_Fault(found.theirs, text, array_text(wanted, 'float')))
    return faults


def misfit(
    archive: Archive,
    match: Match,
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
        return not faults_of(archive, match, shapes_of(match))
    except UserError:
        return False


def of_leftovers(archive: Archive, match: Match) -> tuple[list, list[str]]:
    """(what of the map does not fit the file, keys of the file that nothing has a word for)."""
    shapes = shapes_of(match)
    faults = faults_of(archive, match, shapes)
    leaves = {} if faults else leaves_of(archive, match, shapes)[0]
    return faults, [key for key in leaves if key not in shapes]


def leaves_of(
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


def few(names: Iterable[str]) -> str:
    """The first three of some names, and whether there are more: 'a, b, c ...'."""
    names = list(names)
    return ', '.join(names[:3]) + (' ...' if len(names) > 3 else '')
