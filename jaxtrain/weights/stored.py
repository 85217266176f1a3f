"""Weights that can be started from, under our paths and not read yet: a checkpoint of ours, or a
file from elsewhere seen through the map of its origin.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import jax

from jaxtrain.checkpoints import checkpoint_files, checkpoint_list
from jaxtrain.config.keys import PREPROCESSING
from jaxtrain.errors import UserError, nearest
from jaxtrain.params.partition import by_path, flatten, unflatten, without_collection
from jaxtrain.weights.bundle import Bundle, beside, of_run
from jaxtrain.weights.fill import aligned, fill, fill_alike
from jaxtrain.weights.formats.archive import open_archive
from jaxtrain.weights.matching import faults_of, leaves_of, misfit, shapes_of
from jaxtrain.weights.origins.names import Match, Row
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
        shapes = shapes_of(match)
        if faults := faults_of(archive, match, shapes):
            raise misfit(archive, match, faults, known, model, flag)
        leaves, keys, ignored = leaves_of(archive, match, shapes)
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
                arrays = {part: aligned(wanted[part]) for part in sources[source]}
                if isinstance(source, Row):
                    fill(archive, source, shapes, arrays)
                else:
                    fill_alike(archive, source, arrays[source])
                return {
                    part: jax.device_put(array, wanted[part].sharding, may_alias=True)
                    for part, array in arrays.items()
                }

            for loaded in pool.map(load, sources):
                out |= loaded
        return out

    return Stored(str(path), leaves, keys, read, bundle, ignored), match, files


def _choose(word: str, known: Mapping, what: str) -> None:
    if word not in known:
        raise UserError(
            f'{what} {word!r} is not known{nearest(word, known)}; choose from {", ".join(known)}'
        )
