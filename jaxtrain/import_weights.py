"""The command import: a file of weights from elsewhere becomes a run directory to start from.

The file is checked as a whole, by name and shape, before an array of it is read; the run directory
is written beside its place and renamed, so that it is whole or it is not there.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np

from jaxtrain import checkpoint, restore, run
from jaxtrain.config import Config, base, nearest
from jaxtrain.errors import UserError
from jaxtrain.models import describe, make_model
from jaxtrain.partition import count, flatten, nbytes, unflatten
from jaxtrain.state import TrainState, abstract_variables
from jaxtrain.weights import h5, keras

ORIGINS = {'keras': keras.DEPTHS}
ANY_SIZE = (224, 224)  # the shapes of a backbone do not depend on it
FLOATS = ('float16', 'float32', 'float64')


def import_weights(origin: str, file: str, model: str, workdir: str) -> str:
    """Makes a run directory of a weights file, for `config.init_from`, `evaluate` and `predict`.

    Args:
      origin: 'keras'.
      file: an .h5, .weights.h5 or .keras file.
      model: 'vgg16' or 'vgg19'.
      workdir: the folder to make. The same import again leaves it as it is.

    Returns:
      What happened, in lines.

    Raises:
      UserError: wrong input, or a file that is not this model from the first to the last array.
    """
    _choose(origin, ORIGINS, 'origin')
    _choose(model, ORIGINS[origin], '--model')
    path, out = Path(file), Path(workdir)
    with h5.open_file(path) as opened:
        layout = h5.read_layout(opened, path)
        found = keras.match(layout, model, path)
        config, target = _target(found)
        plan = _plan(path, layout, found, target)
        entry = {
            'origin': origin,
            'model': model,
            'file': path.name,
            'sha256': _sha256(path),
            'layout': layout.name,
            'top': bool(found.outputs),
            'assumed': list(found.assumed),
        }
        if _is_done(out, entry):
            return f'{out} holds this import already; nothing is done'
        with _replacing(out) as folder:
            params = {p: _read(opened, path, found.sources[p], leaf) for p, leaf in target.items()}
            _write(folder, config, entry, plan, params, _data(found))
    return _summary(out, entry, plan, target, found)


def _choose(word: str, known: Mapping, what: str) -> None:
    if word not in known:
        raise UserError(
            f'{what} {word!r} is not known{nearest(word, known)}; choose from {", ".join(known)}'
        )


def _target(found: keras.Match) -> tuple[dict[str, Any], dict[str, jax.ShapeDtypeStruct]]:
    """The config that the weights stand for, and their paths with the shapes that it gives them."""
    c = base()
    c.regime = 'full'
    c.task.name = 'binary' if found.outputs == 1 else 'classify'
    c.model = found.fields
    for name, value in keras.PREPROCESSING.items():
        c.data[name] = value
    c.data.image_size = found.image_size
    made = make_model(Config(c.to_dict()).model, found.outputs or 1)
    params, _ = abstract_variables(made, (*(found.image_size or ANY_SIZE), 3))
    parts = params if found.outputs else {'backbone': params['backbone']}
    return {**c.to_dict(), 'model': describe(made)}, flatten(parts)


def _plan(path: Path, layout: h5.Layout, found: keras.Match, target: Mapping) -> restore.Plan:
    """What becomes of every array. UserError, with all of them, if one does not fit."""
    leaves = []
    for name, leaf in target.items():
        address = found.sources[name]
        shape, dtype = layout.shapes[address], layout.dtypes[address]
        fits = shape == leaf.shape and dtype.name in FLOATS
        said = f'{address} {restore.array_text(shape, dtype)}'
        action = restore.LOAD if fits else 'DIFFERS'
        leaves.append(restore.Leaf(name, action, said, restore.array_text(leaf.shape, leaf.dtype)))
    faults = [leaf for leaf in leaves if leaf.action != restore.LOAD]
    if faults:
        leaf = faults[0]
        raise UserError(
            f'{path}: {len(faults)} of {len(leaves)} arrays do not fit, first {leaf.source} where '
            f'{leaf.path} is {leaf.target}; give a file of this model as keras.applications makes '
            'it, for images of 3 channels',
            details=restore.to_text(tuple(leaves)),
        )
    leaves += [
        restore.Leaf(a, restore.DROP, restore.array_text(layout.shapes[a], layout.dtypes[a]), '-')
        for a in found.ignored
    ]
    return restore.Plan(str(path.absolute()), tuple(leaves))


def _read(opened: h5py.File, path: Path, address: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    # JAX takes memory that is aligned to 64 bytes as its own, without a copy.
    memory = np.empty(nbytes(leaf) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    out = memory[start : start + nbytes(leaf)].view(leaf.dtype).reshape(leaf.shape)
    h5.read(opened, path, address, out)
    return jax.device_put(out, may_alias=True)


def _is_done(out: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very import. UserError if it holds anything else."""
    there = run.read_json(out / 'config.json') if out.is_dir() else None
    if there is not None and there.get('import') == entry:
        return True
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        what = 'a run' if there is not None else 'something else'
        raise UserError(f'--workdir={out} holds {what} already; give another folder, or remove it')
    return False


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all went well, else is removed."""
    place = out.absolute()
    folder = place.parent / f'.{place.name}.{os.getpid()}'
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


def _write(
    folder: Path,
    config: dict[str, Any],
    entry: dict[str, Any],
    plan: restore.Plan,
    params: dict[str, jax.Array],
    data: dict[str, Any] | None,
) -> None:
    files = run.RunDir(folder)
    files.claim(config, data)
    files.write_json('config.json', {**run.read_config(folder), 'import': entry})
    files.write_json('restore.json', plan.to_json())
    state = TrainState(
        step=np.int32(0), seed=np.uint32(0), params=unflatten(params), model_state={},
        opt_state={}, ema={},
    )  # fmt: skip
    with checkpoint.open_manager(folder, config['keep'], config['best_metric']) as manager:
        checkpoint.save(manager, 0, state, {'seconds': {}, 'window': {}}, None)
        manager.wait_until_finished()


def _data(found: keras.Match) -> dict[str, Any] | None:
    """config.json's entry for what the model is made for; None without a top."""
    if not found.outputs:
        return None
    shape = [*found.image_size, 3]
    return {'classes': _classes(found), 'image_shape': shape, 'examples': 0}


def _classes(found: keras.Match) -> list[str]:
    """ImageNet's WordNet ids, whose order is Keras's, for its own top of 1000; else numbers."""
    package = importlib.util.find_spec('tensorflow_datasets')
    labels = Path(package.origin).parent / 'datasets' / 'imagenet2012' / 'labels.txt'
    if found.outputs == 1000 and not found.assumed and labels.exists():
        return labels.read_text().split()
    return [str(i) for i in range(max(found.outputs, 2))]


def _summary(
    out: Path, entry: Mapping, plan: restore.Plan, target: Mapping, found: keras.Match
) -> str:
    top = f'with its top of {found.outputs} outputs' if found.outputs else 'without a top'
    lines = [
        f'{entry["model"]} of {entry["origin"]}, layout {entry["layout"]}, {top}: '
        f'{count(dict(target)):,} parameters in {out}',
        f'sha256 of {entry["file"]}: {entry["sha256"]}',
    ]
    others = {leaf.source.split()[-1] for leaf in plan.leaves if leaf.action == restore.LOAD}
    if others - {'float32'}:
        lines.append(f'converted to float32 from {", ".join(sorted(others - {"float32"}))}')
    if found.ignored:
        lines.append(f'left out {len(found.ignored)} arrays that are no weights; see restore.json')
    lines += [f'assumed, as the file does not say: {text}' for text in found.assumed]
    return '\n'.join(lines)


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
