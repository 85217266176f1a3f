"""A trained model: the checkpoint of a run, on the devices, and its evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain import storage
from jaxtrain.checkpoints import checkpoint_list
from jaxtrain.config import Config
from jaxtrain.data.features import Feature
from jaxtrain.data.pipeline import check_batch_size
from jaxtrain.data.sources.open import Source, input_feature, open_source
from jaxtrain.errors import UserError
from jaxtrain.parallel.compile import compile_step
from jaxtrain.parallel.mesh import abstract_batch, make_mesh, on_mesh, put_batch
from jaxtrain.params.partition import from_paths
from jaxtrain.runs.folder import read_config
from jaxtrain.step.evaluate import per_example
from jaxtrain.step.learner import Learner, make_learner
from jaxtrain.step.state import TrainState
from jaxtrain.tasks.tasks import task_of
from jaxtrain.weights import bundle, restore
from jaxtrain.weights.stored import of_checkpoint


@dataclass(frozen=True)
class Record:
    """A checkpoint of a run, and what the run directory records about it.

    Attributes:
      workdir: the run directory.
      folder: the folder of the checkpoint.
      cfg: the run's config; its tokenizer is the copy in the run directory.
      classes: class names by output, () without a head or without class labels.
      inputs: the feature that the model reads.
      has_head: whether the model has a head.
    """

    workdir: str
    folder: Path
    cfg: Config
    classes: tuple[str, ...]
    inputs: Feature
    has_head: bool


@dataclass(frozen=True)
class Trained:
    """A checkpoint of a run, on the devices.

    Attributes:
      learner: the run's learner.
      state: params (the moving average, if the run has one) and model_state; the rest is empty.
    """

    learner: Learner
    state: TrainState


def evaluate(workdir: str, split: str, name: str) -> dict[str, Any]:
    """Evaluates a checkpoint of a run; opens no split but the one that is evaluated.

    Args:
      workdir: the run directory.
      split: 'train', 'val' or 'test' for the splits of the run, or any other of its data set.
      name: 'best', 'last' or a step.

    Returns:
      {'split', 'step', 'examples', 'metrics': {name: value}}.

    Raises:
      UserError: not a run, no such checkpoint, or no such split.
    """
    record = require_head(read_record(workdir, name))
    cfg = record.cfg
    named = {key: getattr(cfg.data, key) for key in ('train', 'val', 'test')}
    limit = cfg.data.limit if split == 'train' else 0
    split = named.get(split) or split
    source = open_source(cfg.data, split, '--split', limit, record.classes)
    trained = load(record, source)
    values = apply(cfg, trained.state, trained.learner.eval_step(), source)
    return {
        'split': split,
        'step': int(record.folder.name),
        'examples': len(source),
        'metrics': trained.learner.task.summarize(values),
    }


def read_record(workdir: str, name: str) -> Record:
    """Reads config.json and the files beside it, and finds a checkpoint: 'best', 'last' or a step.

    Raises:
      UserError: the folder is not a run, or has no such checkpoint.
    """
    content = read_config(workdir)
    cfg = Config.from_json(content['config'])
    data = content.get('data', {'classes': (), 'shape': ()})
    if tokenizer := bundle.beside(storage.path(workdir)):
        cfg = cfg.replace(data__tokenizer=tokenizer)
    has_head = bool(data['classes']) or not task_of(cfg).has_classes
    inputs = input_feature(cfg.data, tuple(data['shape']))
    folder = checkpoint_list.find(workdir, name, '--checkpoint')
    return Record(workdir, folder, cfg, tuple(data['classes']), inputs, has_head)


def require_head(record: Record) -> Record:
    """Returns the record, or raises a UserError if the model has no head."""
    if not record.has_head:
        raise UserError(
            f'{record.workdir!r} has no classes: its weights have no head; train a head on them '
            'first, with config.init_from'
        )
    return record


def load(record: Record, source: Source) -> Trained:
    """Loads the checkpoint, for examples with the features of the source."""
    learner = make_learner(record.cfg, source)
    variables: tuple[Any, Any] = on_mesh(learner.variables, make_mesh())
    plan = restore.make_plan(of_checkpoint(record.folder), variables, (('.*', restore.LOAD),))
    params, model_state = from_paths(restore.read(plan, variables), *variables)
    # If the run has a moving average, the restore plan has already loaded it as params.
    state = TrainState(
        step=None, seed=None, params=params, model_state=model_state, opt_state=None, ema={}
    )
    return Trained(learner, state)


def apply(cfg: Config, state: Any, step: Callable, source: Source) -> dict[str, np.ndarray]:
    """Applies a step `(state, batch) -> values per example` to all examples of a source."""
    mesh = make_mesh()
    batch_size = cfg.eval_batch_size or cfg.batch_size
    check_batch_size('eval_batch_size', batch_size, mesh.size)
    # At most as large as the source requires, and divisible by the number of devices.
    batch_size = min(batch_size, -(-len(source) // mesh.size) * mesh.size)
    batch = abstract_batch(source.features, batch_size, mesh)
    compiled = compile_step(step, jax.tree.map(_abstract, state), batch, mesh)
    values = per_example(lambda batch: compiled(state, put_batch(batch, mesh)), source, batch_size)
    assert values is not None  # it was given no function that stops it
    return values


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
