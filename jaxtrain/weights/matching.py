"""Comparison of a file of weights with the name map of its origin."""

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
from jaxtrain.weights.formats import wrappers
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins.names import Match, their_shape


def target_model(match: Match) -> tuple[Family, Variables]:
    """Return the model that a file is for, and its abstract (params, model_state)."""
    c = base()
    c.model = dict(match.fields)
    return make_network(Config(c.to_dict()).model, match.outputs or 1, match.inputs)


def shapes_of(match: Match) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the model's leaves by path, without a head if the file has none."""
    leaves = by_path(*target_model(match)[1])
    return {p: x.shape for p, x in leaves.items() if match.outputs or not p.startswith('head/')}


@dataclass(frozen=True)
class _Fault:
    """An array that the file lacks, or has in another shape or with a dtype that is not floating.

    Attributes:
      key: its key in the file.
      actual: 'shape dtype' in the file, '-' if the file lacks it.
      expected: 'shape float', as the map has it.
    """

    key: str
    actual: str
    expected: str


def find_faults(archive: Archive, match: Match, shapes: Mapping) -> list[_Fault]:
    faults = []
    for row in match.rows:
        shape, leaf = their_shape(row, shapes), archive.arrays.get(row.theirs)
        expected = array_text(shape, 'float')
        if leaf is None:
            faults.append(_Fault(row.theirs, '-', expected))
        elif leaf.shape != shape or not jnp.issubdtype(leaf.dtype, jnp.floating):
            faults.append(_Fault(row.theirs, array_text(leaf.shape, leaf.dtype), expected))
    return faults


def misfit(archive: Archive, match: Match, faults: list[_Fault], model: str) -> str:
    """Return why a file does not contain the whole model."""
    fault, total = faults[0], len(match.rows)
    if len(faults) == total and all(f.actual == '-' for f in faults):
        reason = f'none of its {len(archive.arrays)} keys is one of {model} ({few(archive.arrays)})'
        prefixes = {key.split('.')[0] for key in archive.arrays if '.' in key}
        common = len(prefixes) == 1 and len(archive.arrays) > 1
        return reason + (f'; save them without the prefix {prefixes.pop()}.' if common else '')
    if fault.actual == '-':
        spare = [key for key in archive.arrays if key not in {r.theirs for r in match.rows}]
        reason = f'{len(faults)} of {total} arrays, first {fault.key} {fault.expected}, are missing'
        return reason + nearest(fault.key, spare)
    return (
        f'{len(faults)} of {total} arrays do not fit {model}, first {fault.key}, which is '
        f'{fault.actual} and should be {fault.expected}'
    )


def fits(archive: Archive, module, model: str) -> bool:
    """Whether a file contains the whole model, by the name map in a module."""
    try:
        match = module.match(archive, model)
        # Keys are compared first, since the shapes of a large model take a second.
        if any(row.theirs not in archive.arrays for row in match.rows):
            return False
        return not find_faults(archive, match, shapes_of(match))
    except UserError:
        return False


def of_leftovers(archive: Archive, match: Match) -> tuple[list, list[str]]:
    """Return (faults of the file, keys of the file that neither the map nor `ignored` covers)."""
    shapes = shapes_of(match)
    faults = find_faults(archive, match, shapes)
    leaves = {} if faults else leaves_of(archive, match, shapes)[0]
    return faults, [key for key in leaves if key not in shapes]


def leaves_of(
    archive: Archive, match: Match, shapes: Mapping
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, str], dict[str, str]]:
    """Return (leaves by path, path -> key and form in the file, ignored keys -> reason)."""
    ignored: dict[str, list[str]] = {}
    leaves, keys = {}, {}
    for row in match.rows:
        stored = archive.arrays[row.theirs]
        for part in row.parts:
            leaves[part.path] = jax.ShapeDtypeStruct(shapes[part.path], np.float32)
            keys[part.path] = f'{row.theirs} {array_text(stored.shape, stored.dtype)}'
    used = {row.theirs for row in match.rows}
    for key, leaf in archive.arrays.items():
        if key in used:
            continue
        reasons = [
            reason
            for pattern, reason in (*match.ignored, *wrappers.IGNORED)
            if re.fullmatch(pattern, key)
        ]
        if reasons:
            ignored.setdefault(reasons[0], []).append(key)
        else:
            leaves[key] = leaf
    return leaves, keys, {_and_others(names): reason for reason, names in ignored.items()}


def _and_others(names: list[str]) -> str:
    return names[0] + (f' and {len(names) - 1} more' if len(names) > 1 else '')


def few(names: Iterable[str]) -> str:
    """Return the first three names, followed by ' ...' if there are more."""
    names = list(names)
    return ', '.join(names[:3]) + (' ...' if len(names) > 3 else '')
