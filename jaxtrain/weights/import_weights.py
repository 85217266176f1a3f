"""The command import: makes a run directory from a file of weights of another framework.

The names and shapes of the whole file are checked before any array is read. The run directory is
written under another name and renamed once it is complete.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain import storage
from jaxtrain.checkpoints import checkpoint
from jaxtrain.config import Config, base
from jaxtrain.data.features import TOKENS
from jaxtrain.errors import UserError, nearest
from jaxtrain.models import describe
from jaxtrain.parallel.mesh import make_mesh, on_mesh
from jaxtrain.params.partition import count, from_paths
from jaxtrain.runs.folder import RunDir, read_config
from jaxtrain.step.state import TrainState
from jaxtrain.tasks.tasks import TASKS
from jaxtrain.weights import restore
from jaxtrain.weights.bundle import TOKENIZER, beside, resolve
from jaxtrain.weights.matching import target_model
from jaxtrain.weights.origins.names import Match
from jaxtrain.weights.stored import Foreign, Stored, open_foreign


def import_weights(file: str, foreign: Foreign, workdir: str, drop: Sequence[str] = ()) -> str:
    """Make a run directory from weights, for `config.init_from`, `evaluate` and `predict`.

    Args:
      file: the file, or the folder that contains it.
      foreign: its origin and model.
      workdir: the folder to make. Repeating an import does not change it.
      drop: regular expressions for keys in the file that are not wanted.

    Returns:
      A summary of several lines.

    Raises:
      UserError: wrong input, or a file whose arrays are not exactly those of the model.
    """
    path, out = Path(file), storage.on_disk(workdir, 'import')
    stored, match, files = open_foreign(path, foreign)
    _check_unknown(stored, match, drop)
    config, variables = _target(match)
    entry = {
        'origin': foreign.origin,
        'model': foreign.model,
        'files': {f.name: _sha256(f) for f in files},
        'head': match.outputs,
        'dropped': list(drop),
        'assumed': list(match.assumed),
        'fields': dict(foreign.given.fields),
        'allowed_fields': list(foreign.given.accepted),
    }
    if _is_done(out, entry):
        return f'{out} holds this import already; nothing is done'
    rules = (*((pattern, restore.DROP) for pattern in drop), ('.*', restore.LOAD))
    plan = restore.make_plan(stored, variables, rules)
    with _replacing(out) as folder:
        arrays = from_paths(restore.read(plan, variables), *variables)
        run = RunDir(folder)
        run.claim(config, _data(match))
        run.write_json('config.json', {**read_config(folder), 'import': entry})
        run.write_json('restore.json', plan.to_json())
        _save(folder, config['keep'], arrays)
        if tokenizer := beside(files[0].parent):
            shutil.copyfile(tokenizer, folder / TOKENIZER)
    return _summary(out, entry, plan, count(variables[0]))


def _check_unknown(stored: Stored, match: Match, drop: Sequence[str]) -> None:
    """Raise a UserError if the file has a key that neither the map nor `drop` covers."""
    known = {part.path for row in match.rows for part in row.parts}
    spare = [path for path in stored.leaves if path not in known]
    for pattern in drop:
        try:
            used = any(re.fullmatch(pattern, key) for key in spare)
        except re.error as error:
            raise UserError(f'--drop={pattern!r} is not a regular expression ({error})') from error
        if not used:
            raise UserError(
                f'--drop={pattern!r} matches none of the keys that are left over'
                f'{nearest(pattern, spare)}; remove this flag'
            )
    unknown = [key for key in spare if not any(re.fullmatch(p, key) for p in drop)]
    if unknown:
        keys = [row.theirs for row in match.rows]
        raise UserError(
            f'{stored.where}: {len(unknown)} of its keys are not part of the model, first '
            f'{unknown[0]!r}{nearest(unknown[0], keys)}; if they are not wanted, add '
            f"--drop='{re.escape(unknown[0])}'",
            details='\n'.join(f'  {key}' for key in unknown),
        )


def _target(match: Match) -> tuple[dict[str, Any], tuple[Any, Any]]:
    """Return (config of the weights, abstract (params, model_state))."""
    c = base()
    c.regime = 'full'
    c.task.name = match.task
    for name, value in (match.preprocessing or {}).items():
        c.data[name] = value
    if match.inputs.meaning == TOKENS:
        c.data.source = 'text' if TASKS[match.task].has_classes else 'corpus'
    model, (params, model_state) = target_model(match)
    if not match.outputs:
        params = {'backbone': params['backbone']}
    config = resolve(Config({**c.to_dict(), 'model': describe(model)}), None)
    return config.to_dict(), on_mesh((params, model_state), make_mesh())


def _is_done(out: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the folder has this import already. UserError if it has any other content."""
    written = storage.read_json(out / 'config.json') if out.is_dir() else None
    if written is not None and 'import' in written and _is_same(written['import'], entry):
        return True
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        what = 'a run' if written is not None else 'something else'
        raise UserError(f'--workdir={out} holds {what} already; give another folder, or remove it')
    return False


def _is_same(written: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether two imports agree. Assumptions are counted, since their wording may change.

    Imports that recorded no fields made fewer assumptions, which they had in common with others.
    """
    counts = (0, 0)
    if 'fields' in written:
        counts = (len(written['assumed']), len(entry['assumed']))
    usual: dict[str, Any] = {'fields': {}, 'allowed_fields': []}
    return {**usual, **written, 'assumed': counts[0]} == {**usual, **entry, 'assumed': counts[1]}


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Make a folder next to `out`, which replaces `out` on success and is removed otherwise."""
    target = out.absolute()
    folder = target.parent / f'.{target.name}.{os.getpid()}'
    try:
        folder.mkdir(parents=True)
        yield folder
        os.replace(folder, out)
    except OSError as error:
        raise UserError(
            f'--workdir={out} cannot be written ({error.strerror or error}); give another folder'
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _save(folder: Path, keep: int, variables: tuple[Any, Any]) -> None:
    params, model_state = variables
    state = TrainState(
        step=np.int32(0), seed=np.uint32(0), params=params, model_state=model_state,
        opt_state={}, ema={},
    )  # fmt: skip
    with checkpoint.open_manager(folder, keep) as manager:
        host: dict[str, Any] = {'seconds': {}, 'window': {}}
        checkpoint.write(manager, 0, state, host)
        manager.wait_until_finished()


def _data(match: Match) -> dict[str, Any] | None:
    """Return the entry `data` of config.json, or None for an image model without a head."""
    text = match.inputs.meaning == TOKENS
    if not (text or match.outputs):
        return None
    classes: Sequence[str] = match.classes
    if match.outputs and not classes and TASKS[match.task].has_classes:
        classes = _numbers(match)
    shape = match.inputs.shape
    if text:
        assert match.preprocessing is not None  # it has the length of texts
        shape = (match.preprocessing['length'],)
    return {'classes': list(classes), 'shape': list(shape), 'examples': 0}


def _numbers(match: Match) -> list[str]:
    """Return class names: the WordNet ids of ImageNet for 1000 outputs, otherwise numbers.

    All models of ImageNet with 1000 outputs have the same order of classes.
    """
    package = importlib.util.find_spec('tensorflow_datasets')
    assert package is not None and package.origin is not None  # a dependency of jaxtrain
    labels = Path(package.origin).parent / 'datasets' / 'imagenet2012' / 'labels.txt'
    if match.outputs == 1000 and match.imagenet and labels.exists():
        return labels.read_text().split()
    return [str(i) for i in range(max(match.outputs, 2))]


def _summary(out: Path, entry: Mapping, plan: restore.Plan, parameters: int) -> str:
    head = f'with its head of {entry["head"]} outputs' if entry['head'] else 'without a head'
    lines = [f'{entry["model"]} of {entry["origin"]}, {head}: {parameters:,} parameters in {out}']
    lines += [f'sha256 of {name}: {digest}' for name, digest in entry['files'].items()]
    others = {leaf.source.split()[-1] for leaf in plan.leaves if leaf.action == restore.LOAD}
    if others - {'float32'}:
        lines.append(f'converted to float32 from {", ".join(sorted(others - {"float32"}))}')
    lines += plan.stored.notes
    lines += [f'left out {key}: {why}' for key, why in plan.stored.ignored.items()]
    lines += [f'accepted without support: the field {name}' for name in entry['allowed_fields']]
    lines += [f'assumed, since the file does not state it: {text}' for text in entry['assumed']]
    return '\n'.join(lines)


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
