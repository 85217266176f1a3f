"""The training loop. `train` is the outline; what it calls stands below it.

Invariants: `step` counts finished optimizer steps. Lines of metrics.jsonl are on disk before a
checkpoint of their step begins. Whatever a step does depends on the state and on `step` alone, so a
run that is killed and started again ends in the same place, bit for bit.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxtrain import checkpoint, evaluate, run
from jaxtrain.bundle import TOKENIZER
from jaxtrain.clock import Clock
from jaxtrain.config import Config
from jaxtrain.data.pipeline import Slice, train_batches
from jaxtrain.data.sources import Source
from jaxtrain.errors import Preempted
from jaxtrain.job import Job, first_state, make_job
from jaxtrain.mesh import Compiled, abstract_batch, compile_step, put_batch
from jaxtrain.partition import TABLE_COLUMNS
from jaxtrain.preemption import StopRequest
from jaxtrain.schedule import Schedule, make_schedule
from jaxtrain.state import TrainState
from jaxtrain.step import several_steps
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
        job, plan = prepare(cfg, bool(checkpoint.saved_steps(workdir)), workdir)
        folder.check(job.config, job.data())
        if finished := folder.result():
            terminal.say(f'{workdir} is finished; its result.json stands')
            return finished
        manager = checkpoint.open_manager(folder.path, plan.keep, plan.best_metric)
        state, host = _start(job, manager, plan.seed)
        folder.claim(job.config, job.data())  # not before the weights proved to be sound
        clock.add(host['seconds'])
        step = int(state.step)
        _describe(job, folder, terminal, step)
    with clock.phase('compile'):
        calls = plan.calls(step)
        train_steps, eval_step = _compile(job, plan, calls)

    log = _Log(job, plan, folder.open_metrics(step), clock, terminal, step)
    tracker = Tracker(plan.logs, log.train, host['window'])
    with manager, StopRequest() as stop, terminal, clock.phase('train'):
        for count, batch in _batches(job, plan, calls, clock):
            state, metrics = train_steps[count].call(state, batch)
            step += count
            tracker.push(step, metrics)
            terminal.advance(step, job.steps)
            stopping = stop.asked()
            if not (plan.stops(step) or stopping):
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
    result |= {'seconds': clock.read(), 'flops_per_step': train_steps[min(train_steps)].flops}
    folder.write_curves()
    folder.write_json('result.json', result)
    _say_result(result, terminal)
    return result


def prepare(cfg: Config, resumes: bool = False, workdir: str | Path = '') -> tuple[Job, 'Schedule']:
    """All that can be checked before anything is allocated, written or compiled.

    Args:
      cfg: the config.
      resumes, workdir: as of `make_job`.

    Raises:
      UserError: wrong input of any kind, keys included that nothing reads.
    """
    job = make_job(cfg, resumes, workdir)
    plan = make_schedule(job.cfg, job)
    cfg.require_read(but=('compare.',))
    return job, plan


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
        if job.train.tokenizer:
            folder.write_bytes(TOKENIZER, job.train.tokenizer.definition.encode())
    if job.plan:
        folder.write_json('restore.json', job.plan.to_json())
    terminal.say(short_params(rows))
    terminal.say(
        f'{job.regime}: trains {sizes["params_trainable"]:,} of {sizes["params_total"]:,} '
        f'parameters, optimizer {sizes["opt_state_bytes"]:,} bytes, '
        f'{len(job.train):,} examples, {job.steps:,} steps on {job.mesh.size} device(s)'
    )
    if skipped := job.train.skipped:
        terminal.say(
            f'left out {len(skipped)} images that cannot be read: {", ".join(skipped[:3])}'
            f'{" ..." if len(skipped) > 3 else ""}'
        )
    if cut := job.train.cut:
        terminal.say(f'cut {cut:,} texts that are longer than {job.train.shape[0]} tokens')
    if job.plan:
        terminal.say(job.plan.summary())
    if step:
        terminal.say(f'resumes after step {step}')


def _compile(job: Job, plan: Schedule, calls: np.ndarray) -> tuple[dict[int, Compiled], Compiled]:
    """The programs for as many steps as a call takes, and the evaluation step."""
    features, step = job.train.features, job.train_step()
    train_steps = {}
    for count in np.unique(np.diff(calls)).tolist() or [1]:  # none is left after a kill at the end
        batch = abstract_batch(features, plan.batch_size, job.mesh, count)
        program = step if count == 1 else several_steps(step)
        train_steps[count] = compile_step(program, job.abstract, batch, job.mesh, donate=True)
    batch = abstract_batch(features, plan.eval_batch_size, job.mesh)
    return train_steps, compile_step(job.eval_step(), job.abstract, batch, job.mesh, donate=False)


def _batches(job: Job, plan: Schedule, calls: np.ndarray, clock: Clock):
    """For each call (how many steps, their batches on the devices)."""
    part = Slice(jax.process_index(), jax.process_count())
    batches = train_batches(
        job.train, plan.batch_size, plan.seed, calls, part, plan.threads, plan.prefetch
    )
    for count in np.diff(calls).tolist():
        with clock.phase('data_wait'):
            batch = next(batches)
        yield count, put_batch(batch, job.mesh, count)


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
        'skipped_images': len(job.train.skipped),
        'classes': list(job.train.classes),
    }


class _Log:
    """Lines of metrics.jsonl and rows of the table, as the run goes on."""

    def __init__(
        self,
        job: Job,
        plan: Schedule,
        lines: run.MetricsLog | run.NoLog,
        clock: Clock,
        terminal: Terminal,
        step: int,
    ):
        self._rates, self._validates = job.optimizer.learning_rate, bool(plan.val)
        self._lines, self._clock, self._terminal = lines, clock, terminal
        self._last_line = self._last_row = (step, clock.read())
        self._means: dict[str, float] = {}

    def train(self, step: int, means: dict[str, float]) -> None:
        speed = self._speed(self._last_line, step)
        self._last_line, self._means = (step, self._clock.read()), means
        self._lines.append(step, 'train', {**means, 'lr': float(self._rates[step - 1]), **speed})
        if not self._validates:
            self._row(step, {'accuracy': means['accuracy']})

    def val(self, step: int, values: dict[str, float]) -> None:
        self._lines.append(step, 'val', values)
        self._row(step, {f'val {name}': value for name, value in values.items()})

    def _row(self, step: int, values: dict[str, float]) -> None:
        speed = self._speed(self._last_row, step)
        self._last_row = (step, self._clock.read())
        self._terminal.row(
            {
                'step': str(step),
                'loss': number(self._means['loss']) if self._means else '-',
                **{name: number(value) for name, value in values.items()},
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
