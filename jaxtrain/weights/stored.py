"""Weights that a run can start from, by parameter path and not read yet.

They are a checkpoint of a run, or a file of another framework with the name map of its origin.
"""

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from jaxtrain.checkpoints import checkpoint_files, checkpoint_list
from jaxtrain.config.keys import PREPROCESSING
from jaxtrain.errors import UserError, nearest
from jaxtrain.params.partition import by_path, flatten, unflatten, without_collection
from jaxtrain.weights.bundle import Bundle, beside, of_run
from jaxtrain.weights.fill import aligned, fill, fill_unchanged
from jaxtrain.weights.formats.archive import Archive, open_archive
from jaxtrain.weights.matching import find_faults, fits, leaves_of, misfit, shapes_of
from jaxtrain.weights.origins.names import Match, Row
from jaxtrain.weights.origins.origins import ORIGINS
from jaxtrain.weights.schemas.schema import Given

Leaves = Mapping[str, jax.ShapeDtypeStruct]
THREADS = 2  # one reads the file while the other converts, checks and copies


@dataclass(frozen=True)
class Stored:
    """Weights by path. The path of a BatchNorm statistic omits its collection (`batch_stats`).

    Attributes:
      where: the folder or file.
      leaves: path -> shape and dtype. A key of a foreign file that its map does not know is
        included under its own name.
      keys: path -> key, shape and dtype in a foreign file; {} for a checkpoint of a run.
      read: function from leaves by path, with shardings, to arrays by path. The shapes must be the
        stored ones.
      bundle: the settings that belong to the weights; None for a checkpoint outside a run
        directory.
      ignored: keys of a foreign file that are not weights -> reason. Keys with the same reason
        share one entry.
      notes: sentences about which of a file's weights were taken, and how its keys are read.
      assumed: sentences about what no file states.
    """

    where: str
    leaves: Leaves
    keys: Mapping[str, str]
    read: Callable[[Leaves], dict[str, jax.Array]]
    bundle: Bundle | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Foreign:
    """How to read a file of another framework.

    Attributes:
      origin: one of `weights.origins.ORIGINS`.
      model: one of the models of the origin.
      given: what the user states about fields of the files beside the weights.
      flag: the prefix of `model` in the flag or key that the user sets, for messages.
    """

    origin: str
    model: str
    given: Given = field(default_factory=Given)
    flag: str = '--'


def open_stored(path: str, name: str, foreign: Foreign) -> Stored:
    """Open the weights that `config.init_from` names.

    Args:
      path: a run directory; or, with an origin, a file or folder of weights.
      name: the checkpoint of a run: 'best', 'last' or a step.
      foreign: as for `jaxtrain import`; origin and model are '' for a run directory.

    Raises:
      UserError: the path is neither of them, or only one of origin and model is given.
    """
    if foreign.origin or foreign.model:
        return open_foreign(Path(path), foreign)[0]
    foreign.given.check_used()
    if Path(path).is_file():
        raise UserError(
            f'config.init_from={path!r} is a file; name its origin and model in '
            f'config.restore.origin and config.restore.model (origins: {", ".join(ORIGINS)})'
        )
    return of_checkpoint(checkpoint_list.find(path, name, 'config.init_from'), of_run(path))


def of_checkpoint(folder: Path, bundle: Bundle | None = None) -> Stored:
    """Open the checkpoint of a run, whose folder `checkpoint_list.find` returns."""
    tree = checkpoint_files.read_metadata(folder)
    # If the run keeps a moving average, that is loaded; frozen parameters have none.
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
        params = flatten(values.get('params', {})) | flatten(values.get('ema', {}))
        state = flatten(values.get('model_state', {}))
        return {**params, **{without_collection(key): value for key, value in state.items()}}

    leaves = by_path(tree['params'], tree.get('model_state', {}))
    return Stored(str(folder), leaves, {}, read, bundle)


def of_file(origin: str, path: Path, model: str) -> Stored:
    """Open a file of another framework; see `open_foreign`."""
    return open_foreign(path, Foreign(origin, model))[0]


def open_foreign(path: Path, foreign: Foreign) -> tuple[Stored, Match, tuple[Path, ...]]:
    """Open a file of another framework. Only names, shapes and dtypes are read.

    Args:
      path: the file, or the folder that contains it.
      foreign: its origin and model.

    Returns:
      The weights, their match, and the files that hold the arrays.

    Raises:
      UserError: the origin or model is not known, the file cannot be read, its arrays do not
        have the shapes of the model (the error's `details` list these arrays), or a file beside it
        states something that is refused.
    """
    model, given = foreign.model, foreign.given
    _choose(foreign.origin, ORIGINS, 'origin')
    known = _modules(foreign.origin)
    _choose(model, known, f'{foreign.flag}model')
    opener = functools.partial(open_archive, path, _state_dicts(known[model], given))
    with opener() as opened:
        archive = replace(opened, given=given)
        _check_state_dict(archive)
        match = _with_task(known[model].match(archive, model), archive)
        shapes = shapes_of(match)
        if faults := find_faults(archive, match, shapes):
            raise _misfit(archive, match, faults, foreign)
        given.check_used()
        leaves, keys, ignored = leaves_of(archive, match, shapes)
        files, notes = archive.files, archive.notes
    bundle = Bundle(
        str(path),
        match.fields,
        {**PREPROCESSING, **(match.preprocessing or {})},
        match.classes,
        beside(archive.folder),
    )
    stored = Stored(
        str(path), leaves, keys, _reader(opener, match, shapes), bundle, ignored, notes,
        match.assumed,
    )  # fmt: skip
    return stored, match, files


def _reader(
    opener: Callable[[], AbstractContextManager[Archive]], match: Match, shapes: Mapping
) -> Callable[[Leaves], dict[str, jax.Array]]:
    """Return the function `Stored.read` of a file, given the shapes of the model's leaves."""
    rows = {part.path: row for row in match.rows for part in row.parts}

    def read(wanted: Leaves) -> dict[str, jax.Array]:
        values: dict[str, jax.Array] = {}
        # A key that the map does not know may be requested under its own name.
        sources: dict[Row | str, list[str]] = {}
        for name in wanted:
            sources.setdefault(rows.get(name, name), []).append(name)
        with opener() as archive, ThreadPoolExecutor(THREADS) as pool:

            def load(source: Row | str) -> dict[str, jax.Array]:
                arrays = {name: aligned(wanted[name]) for name in sources[source]}
                if isinstance(source, Row):
                    fill(archive, source, shapes, arrays)
                else:
                    fill_unchanged(archive, source, arrays[source])
                return {
                    name: jax.device_put(array, wanted[name].sharding, may_alias=True)
                    for name, array in arrays.items()
                }

            for loaded in pool.map(load, sources):
                values |= loaded
        return values

    return read


def _modules(origin: str) -> dict[str, Any]:
    """Return the module of each model of an origin."""
    return {name: module for module in ORIGINS[origin] for name in module.MODELS}


def _state_dicts(module: Any, given: Given) -> tuple[str, ...]:
    """Return the names of state dicts within checkpoints, the preferred one first."""
    order = getattr(module, 'STATE_DICTS', ())
    return (given.fields['state_dict'], *order) if 'state_dict' in given.fields else order


def _with_task(match: Match, archive: Archive) -> Match:
    """Return a match whose head fits its task. UserError if one output is to tell classes apart."""
    if (match.outputs, match.task) != (1, 'classify'):
        return match
    given = archive.given
    given.used.add('task')
    if given.fields.get('task') != 'binary':
        raise UserError(
            f'{archive.path}: its head has one output, which is a score or a regression, and no '
            f'classes; {given.flags[0]}=task=binary takes it as the logit of the second of two '
            'classes'
        )
    return replace(match, task='binary', classes=())


def _check_state_dict(archive: Archive) -> None:
    """Raise a UserError if the user names weights that a checkpoint does not have."""
    given = archive.given
    if (name := given.fields.get('state_dict')) is None:
        return
    if archive.state_dict.split('.')[0] != name:
        raise UserError(f'{given.flags[0]}=state_dict={name}: {archive.path} has no such weights')
    given.used.add('state_dict')


def _misfit(archive: Archive, match: Match, faults: list, foreign: Foreign) -> UserError:
    """Return the error that a file does not contain the model, but perhaps another one."""
    model, flag = foreign.model, foreign.flag
    for name, module in _modules(foreign.origin).items():
        if name != model and fits(archive, module, name):
            return UserError(
                f'{archive.path} holds {name}, and not {model}; give {flag}model={name}'
            )
    reason = misfit(archive, match, faults, model)
    return UserError(
        f'{archive.path}: {reason}; give all weights of that model, or another {flag}model',
        details='\n'.join(f'  {f.key}: {f.actual}, should be {f.expected}' for f in faults),
    )


def _choose(word: str, known: Mapping, what: str) -> None:
    if word not in known:
        raise UserError(
            f'{what} {word!r} is not known{nearest(word, known)}; choose from {", ".join(known)}'
        )
