"""A job: all that a config stands for, built and checked before any array is allocated.

`train`, `evaluate`, `inspect` and `compare` all start here, so they agree on what a config means.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from jaxtrain import bundle, partition, restore
from jaxtrain import mesh as meshes
from jaxtrain.config import Config
from jaxtrain.data.pipeline import check_batch_size
from jaxtrain.data.sources import Source, open_source
from jaxtrain.errors import UserError
from jaxtrain.models import check_tokens, describe, make_model
from jaxtrain.optim import Optimizer, make_optimizer
from jaxtrain.partition import Partition
from jaxtrain.state import (
    TrainState,
    abstract_inputs,
    abstract_variables,
    init_state,
    init_variables,
)
from jaxtrain.step import make_eval_step, make_train_step
from jaxtrain.stored import open_stored
from jaxtrain.tasks import Task, make_task

REGIMES = ('scratch', 'full', 'finetune')


@dataclass(frozen=True)
class Job:
    """The parts of a run.

    Attributes:
      cfg: the config with nothing left open.
      config: the same as a plain dict, model defaults filled in.
      regime: 'scratch', 'full' or 'finetune'.
      mesh: the devices.
      train: the training examples.
      steps: length of the run.
      model, task, part, optimizer: what the step is made of.
      ema: decay of the moving average, 0 for none.
      resumes: whether the run goes on from a checkpoint of its own.
      plan: the restore plan; None for a start from random parameters, and for a run that resumes.
      abstract: the TrainState's shapes, dtypes and shardings.
    """

    cfg: Config
    config: dict[str, Any]
    regime: str
    mesh: Mesh
    train: Source
    steps: int
    model: nn.Module
    task: Task
    part: Partition
    optimizer: Optimizer
    ema: float
    resumes: bool
    plan: restore.Plan | None
    abstract: TrainState

    def train_step(self):
        """The pure step, as `train` compiles it."""
        return make_train_step(self.model, self.task, self.optimizer.tx, self.part, self.ema)

    def eval_step(self):
        return make_eval_step(self.model, self.task, self.part)

    def data(self) -> dict[str, Any]:
        """What the training data is, for config.json; a run resumes with no other."""
        return {
            'classes': list(self.train.classes),
            'shape': list(self.train.shape),
            'examples': len(self.train),
            'skipped': len(self.train.skipped),
            'digest': self.train.digest,
        }

    def table(self) -> list[tuple]:
        """The parameter table, with the columns of `partition.TABLE_COLUMNS`."""
        loaded = set(self.plan.paths(*restore.TAKEN)) if self.plan else set()
        fresh = 'resume' if self.resumes else restore.INIT
        origin = {p: restore.LOAD if p in loaded else fresh for p in self.part.groups}
        return partition.table(
            self.part, self.abstract.params, self.optimizer.lr_mult, self.optimizer.decay, origin
        )

    def sizes(self) -> dict[str, int]:
        """Counts and bytes for result.json."""
        trainable, _ = self.part.split(self.abstract.params)
        return {
            'params_total': partition.count(self.abstract.params),
            'params_trainable': partition.count(trainable),
            'opt_state_bytes': partition.nbytes(self.abstract.opt_state),
        }


def make_job(cfg: Config, resumes: bool = False, workdir: str | Path = '') -> Job:
    """Builds and checks a job.

    Args:
      cfg: the config.
      resumes: the run has a checkpoint of its own, so what it started from is not looked at again
        (it may be gone).
      workdir: of a run that resumes: its config.json tells what the config left open.

    Raises:
      UserError: anything wrong with the config, the data or the checkpoint to start from.
    """
    stored = None
    if cfg.init_from:
        restoring, checkpoint_name = cfg.restore, cfg.init_checkpoint
        rule_list, origin, its_model = restoring.rules, restoring.origin, restoring.model
        if not resumes:
            stored = open_stored(cfg.init_from, checkpoint_name, origin, its_model)
    cfg = bundle.resumed(cfg, workdir) if resumes else bundle.resolve(cfg, stored and stored.bundle)
    mesh = meshes.make_mesh()
    train = open_source(cfg.data, cfg.data.train, 'config.data.train', cfg.data.limit)
    check_batch_size('batch_size', cfg.batch_size, mesh.size, len(train))
    steps = _steps(cfg, len(train))
    task = make_task(cfg, train)
    model = make_model(cfg.model, task.outputs)
    check_tokens(model, train.tokenizer)
    params, model_state = abstract_variables(model, train.shape)
    part = partition.make_partition(cfg, params, model_state)
    optimizer = make_optimizer(cfg.optim, list(part.groups), part.trainable, steps)
    if not 0 <= cfg.ema < 1:
        raise UserError(f'config.ema={cfg.ema} must be at least 0 and less than 1')
    plan = None
    if stored:
        plan = restore.make_plan(stored, params, model_state, rule_list, train.classes)
    abstract = jax.eval_shape(
        lambda p, m: init_state(p, m, np.uint32(0), optimizer.tx, part, cfg.ema),
        params,
        model_state,
    )
    return Job(
        cfg=cfg,
        config={**cfg.to_dict(), 'model': describe(model)},
        regime=cfg.choose('regime', REGIMES),
        mesh=mesh,
        train=train,
        steps=steps,
        model=model,
        task=task,
        part=part,
        optimizer=optimizer,
        ema=cfg.ema,
        resumes=resumes,
        plan=plan,
        abstract=meshes.on_mesh(abstract, mesh),
    )


def first_state(job: Job, seed: int) -> TrainState:
    """The state before the first step, on the mesh: loaded where the plan says so, else fresh.

    What the plan loads is never initialised: the program below returns the other leaves alone, so
    the compiler leaves the rest out.
    """
    inputs = abstract_inputs(job.train.shape)
    loaded: Mapping[str, jax.Array] = {}
    if job.plan:
        loaded = restore.read(job.plan, job.abstract.params, job.abstract.model_state)

    def fresh(seed: jax.Array) -> dict[str, jax.Array]:
        params, model_state = init_variables(job.model, seed, inputs)
        leaves = partition.by_path(params, model_state)
        return {path: leaf for path, leaf in leaves.items() if path not in loaded}

    whole = meshes.replicated(job.mesh)
    leaves = {**jax.jit(fresh, out_shardings=whole)(np.uint32(seed)), **loaded}
    if job.plan:
        leaves = restore.with_classes(job.plan, leaves)
    params, model_state = partition.from_paths(
        leaves, job.abstract.params, job.abstract.model_state
    )

    # What there is already stays out of the program, which would copy it.
    def others(params: Any, model_state: Any, seed: jax.Array) -> TrainState:
        state = init_state(params, model_state, seed, job.optimizer.tx, job.part, job.ema)
        return state.replace(params={}, model_state={})

    begin = jax.jit(others, out_shardings=whole)(params, model_state, np.uint32(seed))
    return begin.replace(params=params, model_state=model_state)


def _steps(cfg: Config, examples: int) -> int:
    if (cfg.steps > 0) == (cfg.epochs > 0) or min(cfg.steps, cfg.epochs) < 0:
        raise UserError(
            f'config.steps={cfg.steps} and config.epochs={cfg.epochs}: '
            'set exactly one of them above 0'
        )
    return cfg.steps or max(1, math.ceil(cfg.epochs * examples / cfg.batch_size))
