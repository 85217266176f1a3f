"""A finished or unfinished run put to use: `evaluate` on a split, `predict` for images."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jaxtrain import checkpoint, restore, run
from jaxtrain.config import Config
from jaxtrain.data import images
from jaxtrain.data.pipeline import check_batch_size
from jaxtrain.data.sources import Source, open_source
from jaxtrain.errors import UserError
from jaxtrain.evaluate import means, per_example
from jaxtrain.mesh import abstract_batch, compile_step, make_mesh, on_mesh
from jaxtrain.models import make_model
from jaxtrain.partition import Partition, from_paths, make_partition
from jaxtrain.state import TrainState, abstract_variables
from jaxtrain.step import make_eval_step, make_predict_step
from jaxtrain.stored import of_checkpoint
from jaxtrain.tasks import Task, make_task


@dataclass(frozen=True)
class Trained:
    """A checkpoint of a run, on the devices.

    Attributes:
      cfg: the run's config.
      step: the checkpoint's step.
      model, task, part: what the run's step was made of.
      state: params (the moving average, where the run kept one) and model_state; the rest is None.
    """

    cfg: Config
    step: int
    model: nn.Module
    task: Task
    part: Partition
    state: TrainState


def evaluate(workdir: str, split: str, name: str) -> dict[str, Any]:
    """Evaluates a checkpoint of a run, opening nothing but that split.

    Args:
      workdir: the run directory.
      split: 'train', 'val' or 'test' for the run's own splits, or any other of its data set.
      name: 'best', 'last' or a step.

    Returns:
      {'split', 'step', 'examples', 'metrics': {name: mean}}.

    Raises:
      UserError: not a run, no such checkpoint, or no such split.
    """
    cfg, data = _record(workdir)
    folder = checkpoint.find(workdir, name, '--checkpoint')
    named = {key: getattr(cfg.data, key) for key in ('train', 'val', 'test')}
    limit = cfg.data.limit if split == 'train' else 0
    split = named.get(split) or split
    source = open_source(cfg.data, split, '--split', limit, tuple(data['classes']))
    found = _load(cfg, folder, source)
    values = _apply(found, make_eval_step(found.model, found.task, found.part), source)
    return {
        'split': split,
        'step': found.step,
        'examples': len(source),
        'metrics': means(values),
    }


def predict(
    workdir: str, paths: list[str], name: str, output: str, on_bad_image: str, top: int
) -> dict[str, Any]:
    """Writes what a checkpoint of a run says of images, one JSON object a line.

    A line has `file` (as it was named, or found under a folder that was), `class`, `probability`
    and `probabilities`, the `top` highest by class.

    Args:
      workdir: the run directory.
      paths: images, and folders that are searched for them.
      name: 'best', 'last' or a step.
      output: the file to write; '' for predictions.jsonl in the run directory.
      on_bad_image: 'error', or 'skip' to leave out what cannot be read.
      top: classes to list for each image.

    Returns:
      {'step', 'output', 'predictions': [...], 'skipped': [...]}.

    Raises:
      UserError: not a run, no such checkpoint, a path without images, or an image that cannot be
        read; nothing is written then.
    """
    cfg, data = _record(workdir)
    folder = checkpoint.find(workdir, name, '--checkpoint')
    if top < 1:
        raise UserError(f'--top={top} must be at least 1')
    if on_bad_image not in ('error', 'skip'):
        raise UserError(f"--on_bad_image={on_bad_image} is not known; choose 'error' or 'skip'")
    target = Path(output or Path(workdir) / 'predictions.jsonl')
    if not target.parent.is_dir():
        raise UserError(f'--output={target}: there is no folder {target.parent}; make it first')
    if not paths:
        raise UserError('no images were named; add their paths, or those of folders')
    files = list(dict.fromkeys(images.find(paths)))
    files, skipped = _readable(files, cfg, data, on_bad_image)
    source = _images(files, tuple(data['image_shape']), cfg.data.exif, tuple(data['classes']))
    found = _load(cfg, folder, source)
    step = make_predict_step(found.model, found.task, found.part)
    chances = _apply(found, step, source)['probabilities']
    lines = [
        _line(file, row, source.classes, top) for file, row in zip(files, chances, strict=True)
    ]
    run.write(target, ''.join(json.dumps(line) + '\n' for line in lines).encode())
    return {
        'step': found.step,
        'output': str(target),
        'predictions': lines,
        'skipped': skipped,
    }


def _record(workdir: str) -> tuple[Config, dict[str, Any]]:
    """A run's config, and its classes and image shape."""
    found = run.read_config(workdir)
    if 'data' not in found:
        raise UserError(
            f'{workdir!r} has no classes: it holds weights without a top; train a head on them '
            'first, with config.init_from'
        )
    return Config.from_json(found['config']), found['data']


def _load(cfg: Config, folder: Path, source: Source) -> Trained:
    """The checkpoint in a folder, for images as those of the source."""
    mesh = make_mesh()
    task = make_task(cfg, source.classes, source.image_shape[2])
    model = make_model(cfg.model, task.outputs)
    variables = on_mesh(abstract_variables(model, source.image_shape), mesh)
    part = make_partition(cfg, *variables)
    plan = restore.make_plan(of_checkpoint(folder), *variables, (('.*', restore.LOAD),))
    params, model_state = from_paths(restore.read(plan, *variables), *variables)
    # The plan has put the moving average in its place already, where the run kept one.
    state = TrainState(
        step=None, seed=None, params=params, model_state=model_state, opt_state=None, ema={}
    )
    return Trained(cfg, int(folder.name), model, task, part, state)


def _apply(found: Trained, step: Callable, source: Source) -> dict[str, np.ndarray]:
    """What a step `(state, batch) -> values per example` gives for all of a source."""
    mesh = make_mesh()
    batch_size = found.cfg.eval_batch_size or found.cfg.batch_size
    check_batch_size('eval_batch_size', batch_size, mesh.size)
    state = jax.tree.map(_abstract, found.state)
    batch = abstract_batch(source.image_shape, batch_size, mesh)
    compiled = compile_step(step, state, batch, mesh, donate=False)
    return per_example(compiled.call, found.state, source, batch_size, mesh)


def _readable(
    files: list[str], cfg: Config, data: dict[str, Any], on_bad_image: str
) -> tuple[list[str], list[str]]:
    """(files to look at, files left out): with 'skip', each is read once to find out."""
    if on_bad_image == 'error':
        return files, []
    shape, good, skipped = tuple(data['image_shape']), [], []
    for file in files:
        try:
            images.read(file, shape, cfg.data.exif, images.make_fit(cfg.data))
            good.append(file)
        except images.BadImage:
            skipped.append(file)
    if not good:
        raise UserError(f'none of the {len(files)} images can be read, for instance {skipped[0]}')
    return good, skipped


def _images(
    files: list[str], shape: tuple[int, int, int], upright: bool, classes: tuple[str, ...]
) -> Source:
    """Images whose class is not known; their labels are all 0."""

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        found = [images.read(files[i], shape, upright) for i in indices]
        return {'image': np.stack(found), 'label': np.zeros(len(found), np.int32)}

    return Source(fetch, len(files), shape, classes)


def _line(file: str, chances: np.ndarray, classes: tuple[str, ...], top: int) -> dict[str, Any]:
    best = np.argsort(-chances, kind='stable')[:top]
    listed = {classes[i]: float(chances[i]) for i in best}
    return {
        'file': file,
        'class': classes[best[0]],
        'probability': float(chances[best[0]]),
        'probabilities': listed,
    }


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
