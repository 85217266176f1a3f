"""A job: a checked config, built before any array is allocated.

`train`, `inspect`, `plan` and `compare` all start from a job, so they agree on what a config means.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain import storage
from jaxtrain.config import Config, streams
from jaxtrain.config.durations import Run
from jaxtrain.config.streams import Streams
from jaxtrain.costs import flops
from jaxtrain.data.pipeline import check_batch_size
from jaxtrain.data.sources.open import Source, open_source
from jaxtrain.errors import UserError
from jaxtrain.loop import intent
from jaxtrain.models import describe
from jaxtrain.optim.optimizers import Optimizer, make_optimizer
from jaxtrain.parallel import mesh as meshes
from jaxtrain.parallel.compile import trace_step
from jaxtrain.parallel.layout import PARALLEL, Layout, make_layout
from jaxtrain.parallel.replicas import make_replicas
from jaxtrain.params import partition, sharding
from jaxtrain.params.table import Row, Settings, table
from jaxtrain.runs.folder import read_config
from jaxtrain.step.learner import Learner, make_learner, several_steps
from jaxtrain.step.state import TrainState, Update, abstract_inputs, init_state, init_variables
from jaxtrain.weights import bundle, restore
from jaxtrain.weights.schemas.schema import make_given
from jaxtrain.weights.stored import Foreign, Stored, open_stored

REGIMES = ('scratch', 'full', 'finetune')


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
      plan: the restore plan; None for random parameters, and for a run that resumes.
      resumes: whether the run continues from a checkpoint of its own.
    """

    plan: restore.Plan | None
    resumes: bool


@dataclass(frozen=True)
class Job:
    """The parts of a run.

    Attributes:
      cfg: the config with no key left open.
      config: the same as a plain dict, with the defaults of the model.
      regime: 'scratch', 'full' or 'finetune'.
      streams: the random streams.
      train: the training examples.
      steps: length of the run.
      learner, optimizer: the parts of the train step.
      layout: mesh and shardings.
      start: what the run starts from.
      remarks: lines to print: what the config does that may not be expected.
      abstract: shapes, dtypes and shardings of the TrainState.
    """

    cfg: Config
    config: dict[str, Any]
    regime: str
    streams: Streams
    train: Source
    steps: int
    learner: Learner
    optimizer: Optimizer
    layout: Layout
    start: Start
    remarks: tuple[str, ...]
    abstract: TrainState

    def train_step(self):
        """The pure step, as `train` compiles it."""
        return self.learner.train_step(_update(self.cfg, self.optimizer), self.layout.replicas)

    def eval_step(self):
        # jit compiles it even if pmap compiles the train step.
        return self.learner.eval_step(make_replicas(self.layout.mesh, 'jit'))

    def program(self, steps: int = 1) -> tuple:
        """Arguments of `trace_step` and `compile_train_step`, for `steps` steps per call."""
        step = self.train_step() if steps == 1 else several_steps(self.train_step())
        features, mesh = self.train.features, self.layout.mesh
        batch = meshes.abstract_batch(features, self.cfg.batch_size, mesh, steps)
        return step, self.abstract, batch, self.layout

    def model_flops(self) -> float:
        """Floating point operations of a train step over all devices, as MFU defines them: those of
        matrix products and convolutions, without what is recomputed to save memory.
        """
        if hasattr(self.learner.model, 'remat'):
            model = self.learner.model.clone(remat='none')
            self = replace(self, learner=replace(self.learner, model=model))
        return flops.of_jaxpr(trace_step(*self.program()).jaxpr).matmul

    def data(self) -> dict[str, Any]:
        """Describes the training data, for config.json; a run cannot resume with other data."""
        return {
            'classes': list(self.train.classes),
            'shape': list(self.train.shape),
            'examples': len(self.train),
            'skipped': len(self.train.skipped),
            'digest': self.train.digest,
        }

    def table(self) -> list[Row]:
        """The parameter table."""
        groups, plan = self.learner.part.groups, self.start.plan
        loaded = set(plan.paths(*restore.TAKEN)) if plan else set()
        fresh = 'resume' if self.start.resumes else restore.INIT
        settings = Settings(
            groups=groups,
            lr_mult=self.optimizer.lr_mult,
            decay=self.optimizer.decay,
            sharding={path: sharding.to_text(spec) for path, spec in self.layout.specs.items()},
            origin={path: restore.LOAD if path in loaded else fresh for path in groups},
        )
        return table(self.abstract.params, settings)

    def sizes(self) -> dict[str, int]:
        """Parameter counts and bytes, for result.json."""
        trainable, _ = self.learner.part.split(self.abstract.params)
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
    kin: tuple[int, ...] = (),
) -> Job:
    """Builds and checks a job.

    Args:
      cfg: the config.
      resumes: whether the run has a checkpoint of its own. Then the weights that it started from
        are not opened again (they may have been deleted).
      workdir: the directory of a run that resumes, whose config.json resolves keys left open.
      devices: devices to compile for; () for those of this machine.
      opens: opens the training data.
      kin: as in `config.streams.begin`.

    Raises:
      UserError: anything wrong with the config, the data or the weights to start from.
    """
    recorded = _recorded(workdir)
    stored = _open_weights(cfg, resumes)
    weights = stored.bundle if stored else None
    numbers = _streams(cfg, weights, recorded, kin)
    if not recorded:
        intent.check_groups(cfg)
    cfg = _resolved(cfg, weights, resumes, workdir)
    axes, parallel = cfg.mesh, cfg.choose('parallel', PARALLEL)
    mesh = meshes.make_mesh((axes.data, axes.fsdp, axes.tensor), devices)
    train = opens(cfg.data, cfg.data.train, 'config.data.train', cfg.data.limit)
    check_batch_size('batch_size', cfg.batch_size, meshes.batch_shares(mesh), len(train))
    steps = run_length(cfg, len(train))
    learner = make_learner(cfg, train, parallel)
    params, model_state = learner.variables
    layout = make_layout(cfg, mesh, params, learner.model.TENSOR)
    _check_accumulate(cfg, meshes.batch_shares(mesh), bool(model_state))
    part, run = learner.part, Run(steps, cfg.batch_size, len(train), numbers.version)
    optimizer = make_optimizer(cfg.optim, list(part.groups), part.trainable, run)
    plan = None
    if stored:
        plan = restore.make_plan(stored, learner.variables, cfg.restore.rules, train.classes)
    remarks = () if recorded else intent.check_regime(cfg, part.groups, plan)
    begin = partial(init_state, seed=np.uint32(0), update=_update(cfg, optimizer), part=part)
    abstract = jax.eval_shape(begin, (params, model_state))
    return Job(
        cfg=cfg,
        config={**cfg.to_dict(), 'model': describe(learner.model)},
        regime=cfg.regime,
        streams=numbers,
        train=train,
        steps=steps,
        learner=learner,
        optimizer=optimizer,
        layout=layout,
        start=Start(plan, resumes),
        remarks=remarks,
        abstract=sharding.like_params(abstract, layout.specs, params, mesh),
    )


def first_state(job: Job, seed: int) -> TrainState:
    """The state before the first step, on the mesh: loaded by the restore plan, or initialised.

    Leaves that the plan loads are never initialised: the program below returns only the others, so
    that the compiler removes the rest.
    """
    plan, abstract = job.start.plan, job.abstract
    inputs = abstract_inputs(job.train.model_input)
    loaded: Mapping[str, jax.Array] = {}
    if plan:
        loaded = restore.read(plan, (abstract.params, abstract.model_state))

    def fresh(seed: jax.Array) -> dict[str, jax.Array]:
        params, model_state = init_variables(job.learner.model, seed, inputs)
        leaves = partition.by_path(params, model_state)
        return {path: leaf for path, leaf in leaves.items() if path not in loaded}

    placed = partition.by_path(abstract.params, abstract.model_state)
    where = {path: leaf.sharding for path, leaf in placed.items() if path not in loaded}
    leaves = {**jax.jit(fresh, out_shardings=where)(np.uint32(seed)), **loaded}
    if plan:
        leaves = restore.with_classes(plan, leaves)
    variables = partition.from_paths(leaves, abstract.params, abstract.model_state)
    update, part = _update(job.cfg, job.optimizer), job.learner.part

    # Parameters and model state are no outputs of the program, which would copy them.
    def others(variables: tuple[Any, Any], seed: jax.Array) -> TrainState:
        return init_state(variables, seed, update, part).replace(params={}, model_state={})

    rest = abstract.replace(params={}, model_state={})
    where = jax.tree.map(lambda leaf: leaf.sharding, rest)
    begin = jax.jit(others, out_shardings=where)(variables, np.uint32(seed))
    params, model_state = variables
    return begin.replace(params=params, model_state=model_state)


def _open_weights(cfg: Config, resumes: bool) -> Stored | None:
    """Opens the weights in `config.init_from` without reading them; None if the run resumes or
    starts from random parameters.
    """
    if not cfg.init_from:
        return None
    restoring, name = cfg.restore, cfg.init_checkpoint
    # A run that resumes does not use these keys, but may set them, so they count as read.
    _, origin, model = restoring.rules, restoring.origin, restoring.model
    keys = ('config.restore.fields', 'config.restore.allow_fields')
    stated = make_given(restoring.fields, restoring.allow_fields, keys)
    foreign = Foreign(origin, model, stated, 'config.restore.')
    return None if resumes else open_stored(cfg.init_from, name, foreign)


def _recorded(workdir: str | Path) -> dict[str, Any] | None:
    """The config.json of a run that has begun, or None."""
    begun = bool(str(workdir)) and (storage.path(workdir) / 'config.json').exists()
    return read_config(workdir) if begun else None


def _resolved(
    cfg: Config, weights: bundle.Bundle | None, resumes: bool, workdir: str | Path
) -> Config:
    """The config with no key left open."""
    if resumes:
        return bundle.resumed(cfg, workdir)
    return bundle.resolve(bundle.with_recorded_metric(cfg, workdir), weights)


def _streams(
    cfg: Config,
    weights: bundle.Bundle | None,
    recorded: Mapping[str, Any] | None,
    kin: tuple[int, ...],
) -> Streams:
    """The random streams that a run recorded when it began, or those of a new run."""
    regime = cfg.choose('regime', REGIMES)
    if not 0 <= cfg.seed < 2**32:
        raise UserError(f'config.seed={cfg.seed} must lie between 0 and {2**32 - 1}')
    if recorded:
        return streams.of_record(recorded)
    return streams.begin(cfg.seed, regime, weights.seeds if weights else (), kin)


def _update(cfg: Config, optimizer: Optimizer) -> Update:
    if not 0 <= cfg.ema < 1:
        raise UserError(f'config.ema={cfg.ema} must be at least 0 and less than 1')
    return Update(optimizer.tx, cfg.ema, cfg.accumulate)


def _check_accumulate(cfg: Config, shares: int, has_norms: bool) -> None:
    """Raises a UserError unless devices can share the parts of a batch evenly, and the last part
    may be padded if it is smaller.
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


def run_length(cfg: Config, examples: int) -> int:
    """The length of a run in steps. UserError unless exactly one of steps and epochs is set."""
    if (cfg.steps > 0) == (cfg.epochs > 0) or min(cfg.steps, cfg.epochs) < 0:
        raise UserError(
            f'config.steps={cfg.steps} and config.epochs={cfg.epochs}: '
            'set exactly one of them above 0'
        )
    return cfg.steps or max(1, math.ceil(cfg.epochs * examples / cfg.batch_size))
