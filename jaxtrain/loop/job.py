"""A job: all that a config stands for, built and checked before any array is allocated.

`train`, `evaluate`, `inspect` and `compare` all start here, so they agree on what a config means.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from jaxtrain.config import Config
from jaxtrain.config.durations import Run
from jaxtrain.costs import flops
from jaxtrain.data.on_device.inputs import Inputs, make_inputs
from jaxtrain.data.pipeline import check_batch_size
from jaxtrain.data.sources.open import Source, open_source
from jaxtrain.errors import UserError
from jaxtrain.models import check_inputs, describe, make_model, split_scan
from jaxtrain.optim.optimizers import Optimizer, make_optimizer
from jaxtrain.parallel import mesh as meshes
from jaxtrain.parallel.replicas import Replicas, make_replicas
from jaxtrain.params import partition, sharding
from jaxtrain.params.partition import Partition
from jaxtrain.step.precision import Precision, make_precision
from jaxtrain.step.state import (
    TrainState,
    abstract_inputs,
    abstract_variables,
    init_state,
    init_variables,
)
from jaxtrain.step.steps import make_eval_step, make_train_step, several_steps
from jaxtrain.tasks.task import Task
from jaxtrain.tasks.tasks import make_task
from jaxtrain.weights import bundle, restore
from jaxtrain.weights.stored import open_stored

REGIMES = ('scratch', 'full', 'finetune')
PARALLEL = ('jit', 'pmap')


@dataclass(frozen=True)
class Job:
    """The parts of a run.

    Attributes:
      cfg: the config with nothing left open.
      config: the same as a plain dict, model defaults filled in.
      regime: 'scratch', 'full' or 'finetune'.
      mesh: the devices.
      parallel: what compiles the step, 'jit' or 'pmap'.
      train: the training examples.
      steps: length of the run.
      model, task, inputs, part, optimizer: what the step is made of.
      ema: decay of the moving average, 0 for none.
      accumulate: parts that a batch is taken in.
      precision: what the model computes in.
      replicas: what the step does about the devices.
      specs: parameter path -> how it is cut over the mesh.
      resumes: whether the run goes on from a checkpoint of its own.
      plan: the restore plan; None for a start from random parameters, and for a run that resumes.
      abstract: the TrainState's shapes, dtypes and shardings.
    """

    cfg: Config
    config: dict[str, Any]
    regime: str
    mesh: Mesh
    parallel: str
    train: Source
    steps: int
    model: nn.Module
    task: Task
    inputs: Inputs
    part: Partition
    optimizer: Optimizer
    ema: float
    accumulate: int
    precision: Precision
    replicas: Replicas
    specs: Mapping[str, PartitionSpec]
    resumes: bool
    plan: restore.Plan | None
    abstract: TrainState

    def train_step(self):
        """The pure step, as `train` compiles it."""
        return make_train_step(
            self.model, self.task, self.inputs, self.optimizer.tx, self.part, self.ema,
            self.accumulate, self.precision, self.replicas,
        )  # fmt: skip

    def eval_step(self):
        # It is compiled by jit whatever the train step is compiled by.
        replicas = make_replicas(self.mesh, 'jit')
        return make_eval_step(
            self.model, self.task, self.inputs, self.part, self.precision, replicas
        )

    def program(self, steps: int = 1) -> tuple:
        """Arguments of `mesh.trace_step` and `compile_train_step`, for so many steps in a call."""
        step = self.train_step() if steps == 1 else several_steps(self.train_step())
        batch = meshes.abstract_batch(self.train.features, self.cfg.batch_size, self.mesh, steps)
        return step, self.abstract, batch, self.mesh, self.parallel

    def model_flops(self) -> float:
        """Floating point operations of a train step over all devices, as MFU is defined: of
        products of matrices and convolutions, without what is computed anew to save memory.
        """
        if hasattr(self.model, 'remat'):
            self = replace(self, model=self.model.clone(remat='none'))
        return flops.of_jaxpr(meshes.trace_step(*self.program()).jaxpr).matmul

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
            self.part,
            self.abstract.params,
            self.optimizer.lr_mult,
            self.optimizer.decay,
            {path: sharding.to_text(spec) for path, spec in self.specs.items()},
            origin,
        )

    def sizes(self) -> dict[str, int]:
        """Counts and bytes for result.json."""
        trainable, _ = self.part.split(self.abstract.params)
        return {
            'params_total': partition.count(self.abstract.params),
            'params_trainable': partition.count(trainable),
            'opt_state_bytes': partition.nbytes(self.abstract.opt_state),
        }


def make_job(
    cfg: Config,
    resumes: bool = False,
    workdir: str | Path = '',
    devices: Sequence[jax.Device] = (),
    opens: Callable[..., Source] = open_source,
) -> Job:
    """Builds and checks a job.

    Args:
      cfg: the config.
      resumes: the run has a checkpoint of its own, so what it started from is not looked at again
        (it may be gone).
      workdir: of a run that resumes: its config.json tells what the config left open.
      devices: to compile for; () for those at hand.
      opens: what opens the training data.

    Raises:
      UserError: anything wrong with the config, the data or the checkpoint to start from.
    """
    stored, theirs = None, None
    if cfg.init_from:
        restoring, checkpoint_name = cfg.restore, cfg.init_checkpoint
        rule_list, origin, its_model = restoring.rules, restoring.origin, restoring.model
        if not resumes:
            stored = open_stored(cfg.init_from, checkpoint_name, origin, its_model)
            theirs = stored.bundle
    cfg = bundle.resumed(cfg, workdir) if resumes else bundle.resolve(cfg, theirs)
    axes, parallel = cfg.mesh, cfg.choose('parallel', PARALLEL)
    mesh = meshes.make_mesh((axes.data, axes.fsdp, axes.tensor), devices)
    train = opens(cfg.data, cfg.data.train, 'config.data.train', cfg.data.limit)
    check_batch_size('batch_size', cfg.batch_size, meshes.batch_shares(mesh), len(train))
    steps = _steps(cfg, len(train))
    task, inputs = make_task(cfg, train), make_inputs(cfg.data, train)
    model = make_model(cfg.model, task.outputs(train))
    check_inputs(model, train.model_input.meaning, train.tokenizer)
    params, model_state = abstract_variables(model, train.model_input)
    part = partition.make_partition(cfg, params, model_state)
    specs = sharding.make_specs(axes.rules, mesh, params)
    _check_pmap(parallel, mesh)
    _check_accumulate(cfg, meshes.batch_shares(mesh), bool(model_state))
    model = split_scan(model, {p: group != partition.FROZEN for p, group in part.groups.items()})
    model = model.clone(axis=meshes.PMAP_AXIS) if parallel == 'pmap' and model_state else model
    optimizer = make_optimizer(
        cfg.optim, list(part.groups), part.trainable, Run(steps, cfg.batch_size, len(train))
    )
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
        parallel=parallel,
        train=train,
        steps=steps,
        model=model,
        task=task,
        inputs=inputs,
        part=part,
        optimizer=optimizer,
        ema=cfg.ema,
        accumulate=cfg.accumulate,
        precision=make_precision(cfg, model, abstract_inputs(train.model_input)),
        replicas=make_replicas(mesh, parallel),
        specs=specs,
        resumes=resumes,
        plan=plan,
        abstract=sharding.like_params(abstract, specs, params, mesh),
    )


def first_state(job: Job, seed: int) -> TrainState:
    """The state before the first step, on the mesh: loaded where the plan says so, else fresh.

    What the plan loads is never initialised: the program below returns the other leaves alone, so
    the compiler leaves the rest out.
    """
    inputs = abstract_inputs(job.train.model_input)
    loaded: Mapping[str, jax.Array] = {}
    if job.plan:
        loaded = restore.read(job.plan, job.abstract.params, job.abstract.model_state)

    def fresh(seed: jax.Array) -> dict[str, jax.Array]:
        params, model_state = init_variables(job.model, seed, inputs)
        leaves = partition.by_path(params, model_state)
        return {path: leaf for path, leaf in leaves.items() if path not in loaded}

    placed = partition.by_path(job.abstract.params, job.abstract.model_state)
    where = {path: leaf.sharding for path, leaf in placed.items() if path not in loaded}
    leaves = {**jax.jit(fresh, out_shardings=where)(np.uint32(seed)), **loaded}
    if job.plan:
        leaves = restore.with_classes(job.plan, leaves)
    params, model_state = partition.from_paths(
        leaves, job.abstract.params, job.abstract.model_state
    )

    # What there is already stays out of the program, which would copy it.
    def others(params: Any, model_state: Any, seed: jax.Array) -> TrainState:
        state = init_state(params, model_state, seed, job.optimizer.tx, job.part, job.ema)
        return state.replace(params={}, model_state={})

    rest = job.abstract.replace(params={}, model_state={})
    where = jax.tree.map(lambda leaf: leaf.sharding, rest)
    begin = jax.jit(others, out_shardings=where)(params, model_state, np.uint32(seed))
    return begin.replace(params=params, model_state=model_state)


def _check_pmap(parallel: str, mesh: Mesh) -> None:
    if parallel == 'pmap' and jax.process_count() > 1:
        # It cannot be compiled ahead of its first call there.
        raise UserError(
            "config.parallel='pmap' is for the devices of one process, and there are "
            f"{jax.process_count()}; set it to 'jit'"
        )
    if parallel == 'pmap' and mesh.shape['data'] != mesh.size:
        raise UserError(
            "config.parallel='pmap' only shares batches; set config.mesh.fsdp and "
            "config.mesh.tensor to 1, or config.parallel to 'jit'"
        )


def _check_accumulate(cfg: Config, shares: int, has_norms: bool) -> None:
    """UserError unless the parts of a batch can be shared by the devices, and padded if they are
    not even.
    """
    parts, batch = cfg.accumulate, cfg.batch_size
    if not 1 <= parts <= batch:
        raise UserError(
            f'config.accumulate={parts} must be at least 1, and at most config.batch_size={batch}'
        )
    rows = -(-batch // parts)
    if rows % shares:
        raise UserError(
            f'config.accumulate={parts}: a part of config.batch_size={batch} has {rows} examples, '
            f'which {shares} devices cannot share evenly; choose another number of parts'
        )
    if batch % parts and has_norms:
        raise UserError(
            f'config.accumulate={parts} does not divide config.batch_size={batch}, and BatchNorm '
            'would see the rows that fill up the last part; choose a divisor'
        )


def _steps(cfg: Config, examples: int) -> int:
    if (cfg.steps > 0) == (cfg.epochs > 0) or min(cfg.steps, cfg.epochs) < 0:
        raise UserError(
            f'config.steps={cfg.steps} and config.epochs={cfg.epochs}: '
            'set exactly one of them above 0'
        )
    return cfg.steps or max(1, math.ceil(cfg.epochs * examples / cfg.batch_size))
