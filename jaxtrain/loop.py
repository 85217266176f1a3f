"""The training loop. `train` is the outline; what it calls stands below it.

Invariants: `step` counts finished optimizer steps. Lines of metrics.jsonl are on disk before a
checkpoint of their step begins. Whatever a step does depends on the state and on `step` alone, so a
run that is killed and started again ends in the same place, bit for bit.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxtrain import checkpoint, evaluate, run
from jaxtrain.clock import Clock
from jaxtrain.config import Config
from jaxtrain.data.pipeline import Slice, check_batch_size, train_batches
from jaxtrain.data.sources import Source, open_source
from jaxtrain.errors import Preempted, UserError
from jaxtrain.job import Job, first_state, make_job
from jaxtrain.mesh import Compiled, abstract_batch, compile_step, put_batch
from jaxtrain.partition import TABLE_COLUMNS
from jaxtrain.preemption import StopRequest
from jaxtrain.state import TrainState
from jaxtrain.terminal import Terminal, number, short_params
from jaxtrain.tracking import Tracker, require_finite


def train(cfg: Config, workdir: str | Path, terminal: Terminal) -> dict[str, Any]:
    """Trains what the config says, or goes on where an earlier start of it stopped.

    Args:
      cfg: the config.
      workdir: the run directory; a finished run in it is returned as it is.
      terminal: where to say what happens.

    Returns:
      The content of result.json.

    Raises:
      UserError: wrong input, or a loss that is not finite.
      Preempted: stopped by SIGTERM, with the state saved.
    """
    clock, folder = Clock(), run.RunDir(Path(workdir), writes=jax.process_index() == 0)
    with clock.phase('init'):
        folder.check_writable()
        job, plan = prepare(cfg, resumes=bool(checkpoint.saved_steps(workdir)))
        folder.claim(job.config)
        if finished := folder.result():
            terminal.say(f'{workdir} is finished; its result.json stands')
            return finished
        manager = checkpoint.open_manager(folder.path, plan.keep, plan.best_metric)
        state, host = _start(job, manager, plan.seed)
        clock.add(host['seconds'])
        step = int(state.step)
        _describe(job, folder, terminal, step)
    with clock.phase('compile'):
        train_step, eval_step = _compile(job, plan)

    log = _Log(job, folder.open_metrics(step), clock, terminal, step)
    tracker = Tracker(plan.log_every, log.train, host['window'])
    with manager, StopRequest() as stop, terminal, clock.phase('train'):
        for batch in _batches(job, plan, step, clock):
            state, metrics = train_step.call(state, batch)
            step += 1
            tracker.push(step, metrics)
            terminal.advance(step, job.steps)
            stopping = stop.at(step)
            if not (plan.evaluates(step) or plan.saves(step) or stopping):
                continue
            tracker.drain()
            val = None
            if plan.evaluates(step) and plan.val:
                with clock.phase('eval'):
                    val = evaluate.means(_evaluate(eval_step, state, plan.val, plan, job))
                require_finite(f'the val loss is {val["loss"]} at step {step}', val['loss'])
                log.val(step, val)
            with clock.phase('save'):
                host = {'seconds': clock.read(), 'window': tracker.window}
                checkpoint.save(manager, step, state, host, val)
                if stopping:
                    manager.wait_until_finished()
            if stopping:
                raise Preempted(f'stopped at step {step} of {job.steps}, state saved in {workdir}')
        with clock.phase('save'):
            manager.wait_until_finished()
        result = _finish(job, plan, manager, state, eval_step, log, clock, folder)
    log.close()
    result |= {'seconds': clock.read(), 'flops_per_step': train_step.flops}
    folder.write_curves()
    folder.write_json('result.json', result)
    _say_result(result, terminal)
    return result


def prepare(cfg: Config, resumes: bool = False) -> tuple[Job, 'Schedule']:
    """All that can be checked before anything is allocated, written or compiled.

    Args:
      cfg: the config.
      resumes: leave out the checkpoint to start from; see `make_job`.

    Raises:
      UserError: wrong input of any kind, keys included that nothing reads.
    """
    job = make_job(cfg, resumes)
    plan = make_schedule(cfg, job)
    cfg.require_read(but=('compare.',))
    return job, plan


@dataclass(frozen=True)
class Schedule:
    """What happens when, and on which data: the loop's part of the config.

    Attributes:
      steps, log_every, eval_every, save_every: in steps; 0 means only at the end.
      val, test: sources to evaluate on, or None.
    """

    seed: int
    steps: int
    batch_size: int
    eval_batch_size: int
    log_every: int
    eval_every: int
    save_every: int
    keep: int
    best_metric: str
    threads: int
    prefetch: int
    val: Source | None
    test: Source | None

    def evaluates(self, step: int) -> bool:
        return step == self.steps or bool(self.eval_every and step % self.eval_every == 0)

    def saves(self, step: int) -> bool:
        return step == self.steps or bool(self.save_every and step % self.save_every == 0)


def make_schedule(cfg: Config, job: Job) -> Schedule:
    """Reads and checks the loop's keys. UserError for one out of range or a split that is wrong."""
    least = {'log_every': 1, 'eval_every': 0, 'save_every': 0, 'eval_batch_size': 0, 'keep': 1}
    for name, minimum in least.items():
        if getattr(cfg, name) < minimum:
            raise UserError(f'config.{name}={getattr(cfg, name)} must be at least {minimum}')
    if not 0 <= cfg.seed < 2**32:
        raise UserError(f'config.seed={cfg.seed} must lie between 0 and {2**32 - 1}')
    eval_batch_size = cfg.eval_batch_size or cfg.batch_size
    check_batch_size('eval_batch_size', eval_batch_size, job.mesh.size)
    data = cfg.data
    val, test = (
        open_source(data, split, f'config.data.{name}') if split else None
        for name, split in (('val', data.val), ('test', data.test))
    )
    return Schedule(
        seed=cfg.seed,
        steps=job.steps,
        batch_size=cfg.batch_size,
        eval_batch_size=eval_batch_size,
        log_every=cfg.log_every,
        eval_every=cfg.eval_every,
        save_every=cfg.save_every,
        keep=cfg.keep,
        best_metric=cfg.choose('best_metric', ('accuracy', 'loss')),
        threads=data.threads,
        prefetch=data.prefetch,
        val=val,
        test=test,
    )


def _start(job: Job, manager: ocp.CheckpointManager, seed: int) -> tuple[TrainState, dict]:
    """Resume, else restore, else init."""
    step = manager.latest_step()
    if step is not None:
        return checkpoint.resume(manager, step, job.abstract)
    return first_state(job, seed), {'seconds': {}, 'window': {}}


def _describe(job: Job, folder: run.RunDir, terminal: Terminal, step: int) -> None:
    """Writes and prints the parameter table and the restore plan, before the first compile."""
    rows, sizes = job.table(), job.sizes()
    if not job.resumes:
        folder.write_table('params.tsv', TABLE_COLUMNS, rows)
    if job.plan:
        folder.write_json('restore.json', job.plan.to_json())
    terminal.say(short_params(rows))
    terminal.say(
        f'{job.regime}: trains {sizes["params_trainable"]:,} of {sizes["params_total"]:,} '
        f'parameters, optimizer {sizes["opt_state_bytes"]:,} bytes, '
        f'{len(job.train):,} examples, {job.steps:,} steps on {job.mesh.size} device(s)'
    )
    if job.plan:
        terminal.say(job.plan.summary())
    if step:
        terminal.say(f'resumes after step {step}')


def _compile(job: Job, plan: Schedule) -> tuple[Compiled, Compiled]:
    shape = job.train.image_shape
    batch = abstract_batch(shape, plan.batch_size, job.mesh)
    eval_batch = abstract_batch(shape, plan.eval_batch_size, job.mesh)
    return (
        compile_step(job.train_step(), job.abstract, batch, job.mesh, donate=True),
        compile_step(job.eval_step(), job.abstract, eval_batch, job.mesh, donate=False),
    )


def _batches(job: Job, plan: Schedule, step: int, clock: Clock):
    """The batches of the steps that are left, on the devices."""
    part = Slice(jax.process_index(), jax.process_count())
    batches = train_batches(
        job.train,
        plan.batch_size,
        plan.seed,
        range(step, plan.steps),
        part,
        plan.threads,
        plan.prefetch,
    )
    for _ in range(step, plan.steps):
        with clock.phase('data_wait'):
            batch = next(batches)
        yield put_batch(batch, job.mesh)


def _evaluate(
    eval_step: Compiled, state: TrainState, source: Source, plan: Schedule, job: Job
) -> dict[str, np.ndarray]:
    return evaluate.per_example(eval_step.call, state, source, plan.eval_batch_size, job.mesh)


def _finish(
    job: Job,
    plan: Schedule,
    manager: ocp.CheckpointManager,
    state: TrainState,
    eval_step: Compiled,
    log: '_Log',
    clock: Clock,
    folder: run.RunDir,
) -> dict[str, Any]:
    """Reads test once, with the checkpoint that val chose; returns the result but for its times."""
    best = manager.best_step() if plan.val else plan.steps
    metrics: dict[str, Mapping[str, float]] = {}
    if plan.val:
        metrics['val'] = dict(manager.metrics(best))
    if plan.test:
        with clock.phase('eval'):
            if best != plan.steps:
                state = checkpoint.resume(manager, best, job.abstract)[0]
            values = _evaluate(eval_step, state, plan.test, plan, job)
        metrics['test'] = evaluate.means(values)
        folder.write_npz('test.npz', values)
        log.test(best, metrics['test'])
    return {
        'regime': job.regime,
        'steps': plan.steps,
        'best_step': best,
        'examples_seen': plan.steps * plan.batch_size,
        **job.sizes(),
        'metrics': metrics,
        'classes': list(job.train.classes),
    }


class _Log:
    """Lines of metrics.jsonl and rows of the table, as the run goes on."""

    def __init__(
        self, job: Job, lines: run.MetricsLog, clock: Clock, terminal: Terminal, step: int
    ):
        self._rates, self._lines, self._clock, self._terminal = (
            job.optimizer.learning_rate, lines, clock, terminal,
        )  # fmt: skip
        self._last_line = self._last_row = (step, clock.read())
        self._loss: float | None = None

    def train(self, step: int, means: dict[str, float]) -> None:
        speed = self._speed(self._last_line, step)
        self._last_line, self._loss = (step, self._clock.read()), means['loss']
        self._lines.append(step, 'train', {**means, 'lr': float(self._rates[step - 1]), **speed})

    def val(self, step: int, values: dict[str, float]) -> None:
        self._lines.append(step, 'val', values)
        speed = self._speed(self._last_row, step)
        self._last_row = (step, self._clock.read())
        self._terminal.row(
            {
                'step': str(step),
                'loss': '-' if self._loss is None else number(self._loss),
                **{f'val {name}': number(value) for name, value in values.items()},
                'lr': f'{self._rates[step - 1]:.2e}',
                'steps/s': number(speed['steps_per_s']),
                'data wait': f'{100 * speed["data_wait"]:.1f}%',
            }
        )

    def test(self, step: int, values: dict[str, float]) -> None:
        self._lines.append(step, 'test', values)

    def close(self) -> None:
        self._lines.close()

    def _speed(self, since: tuple[int, dict], step: int) -> dict[str, float]:
        """Steps per second of training (evaluation and saving left out), and the share of waits."""
        before, now = since[1], self._clock.read()
        wait = now['data_wait'] - before['data_wait']
        seconds = max(now['train'] - before['train'] + wait, 1e-9)
        return {'steps_per_s': (step - since[0]) / seconds, 'data_wait': wait / seconds}


def _say_result(result: dict[str, Any], terminal: Terminal) -> None:
    for split, values in result['metrics'].items():
        said = ', '.join(f'{name} {number(value)}' for name, value in values.items())
        terminal.say(f'{split} at step {result["best_step"]}: {said}')
    seconds = {k: round(v, 1) for k, v in result['seconds'].items()}
    terminal.say(f'seconds: {json.dumps(seconds)[1:-1].replace(chr(34), "")}')
