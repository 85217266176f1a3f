"""The training loop. `_run` is the outline; what it calls stands below it.

Invariants: `step` counts finished optimizer steps. Lines of metrics.jsonl about training are on
disk before a checkpoint of their step begins; an evaluation comes after it, and one that a stop cut
off is made up for when the run goes on. Whatever a step does depends on the state and on `step`
alone, so a run that is killed and started again ends in the same place, bit for bit.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxtrain import storage
from jaxtrain.checkpoints import checkpoint, checkpoint_files
from jaxtrain.config import Config
from jaxtrain.costs.chips import chip_of
from jaxtrain.data.pipeline import Slice, train_batches
from jaxtrain.data.sources.source import Source
from jaxtrain.errors import Preempted
from jaxtrain.loop.job import Job, first_state, make_job
from jaxtrain.loop.profiling import Trace
from jaxtrain.loop.progress import Progress, Work
from jaxtrain.loop.schedule import Schedule, make_schedule
from jaxtrain.loop.tracking import Tracker, require_finite
from jaxtrain.parallel.mesh import (
    Compiled,
    abstract_batch,
    compile_step,
    compile_train_step,
    put_batch,
)
from jaxtrain.params.partition import TABLE_COLUMNS
from jaxtrain.pod.join import Pod
from jaxtrain.pod.watchdog import Watchdog
from jaxtrain.runs import metric, run
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.events import Timeline
from jaxtrain.step import evaluate
from jaxtrain.step.state import TrainState
from jaxtrain.terminal import Terminal, number, short_params
from jaxtrain.weights.bundle import TOKENIZER


def train(cfg: Config, workdir: str | Path, terminal: Terminal, pod: Pod) -> dict[str, Any]:
    """Trains what the config says, or goes on where an earlier start of it stopped.

    Args:
      cfg: the config.
      workdir: the run directory; a finished run in it is returned as it is.
      terminal: where to say what happens.
      pod: the processes that train together.

    Returns:
      The content of result.json.

    Raises:
      UserError: wrong input, a loss that is not finite, or no room for checkpoints.
      Preempted: stopped by SIGTERM, with the state saved.
    """
    folder = run.RunDir(storage.path(workdir), writes=jax.process_index() == 0)
    timeline = Timeline(folder.path, folder.writes)
    clock = Clock(listener=timeline.phase)
    pod.peers.position, pod.peers.on_end = clock.position, timeline.end
    with clock.phase('init'):
        folder.check_writable()
        job, plan = prepare(cfg, bool(checkpoint_files.saved_steps(workdir)), workdir)
        folder.check(job.config, job.data())
        if finished := folder.result():
            terminal.say(f'{workdir} is finished; its result.json stands')
            return finished
        # Not before the folder proved to be this run's own.
        timeline.begin(
            clock, job.steps, jax.process_count(), job.mesh.size, run.provenance()['git']
        )
        if job.resumes:
            timeline.open()
    with timeline:
        try:
            result = _run(job, plan, folder, terminal, clock, timeline, pod)
        except Exception as error:
            pod.peers.judge(error)  # before the timeline says why it ends
            raise
    _say_result(result, terminal)
    return result


def _run(
    job: Job,
    plan: Schedule,
    folder: run.RunDir,
    terminal: Terminal,
    clock: Clock,
    timeline: Timeline,
    pod: Pod,
) -> dict[str, Any]:
    val: dict[int, Mapping[str, float]] = {}
    best = functools.partial(metric.best_of, val, plan.best_metric)
    manager = checkpoint.open_manager(folder.path, plan.keep, best)
    watchdog = Watchdog(plan.budgets, clock.position, pod.peers, folder.path, timeline)
    trace = Trace(folder.path / 'profile', plan.profile if folder.writes else None)
    with manager, watchdog, terminal:
        with clock.phase('restore'):
            logged = run.read_metrics(folder.path)
            state, host = _start(job, manager, plan.seed, logged, timeline, terminal)
            step = clock.step = int(state.step)
        clock.add(host['seconds'])
        folder.claim(job.config, job.data())  # not before the weights proved to be sound
        timeline.open()
        val |= {s: values for s, values in run.val_of(logged).items() if s <= step}
        _describe(job, folder, terminal, step)
        with clock.phase('compile'):
            calls = plan.calls(step)
            train_steps, eval_step = _compile(job, plan, calls)
        work = _work(job, plan, train_steps)
        lines = folder.open_metrics(step, functools.partial(checkpoint.make_room, manager))
        log = Progress(job, plan, work, lines, clock, terminal, timeline.trained, step)
        tracker = Tracker(plan.logs, log.train, host['window'])

        def save(wait: bool = False) -> None:
            log.sync()
            with clock.phase('save'):
                host = {'seconds': clock.read(), 'window': tracker.window}
                report = functools.partial(_report, 'failed', step, timeline, terminal)
                checkpoint.save(manager, step, state, host, report, wait)

        def leave() -> NoReturn:
            if not step:
                raise Preempted('stopped before the first step')
            save(wait=True)
            raise Preempted(f'stopped at step {step} of {job.steps}, state saved in {folder.path}')

        def read(source: Source | None) -> dict[str, np.ndarray] | None:
            assert source is not None  # only splits that there are get read
            with clock.phase('eval'):
                return evaluate.per_example(
                    eval_step, state, source, plan.eval_batch_size, job.mesh, pod.stop.asked
                )

        def validate() -> None:
            values = read(plan.val)
            if values is None:
                leave()
            means = job.task.summarize(values)
            require_finite(f'the val loss is {means["loss"]} at step {step}', means['loss'])
            val[step] = means
            log.val(step, means)

        def test() -> dict[str, float]:
            values = read(plan.test)
            if values is None:
                raise Preempted(f'stopped while test was read; the state is saved in {folder.path}')
            folder.write_npz('test.npz', values)
            means = job.task.summarize(values)
            log.test(best_step, means)
            return means

        with trace, clock.phase('train'):
            if pod.stop.asked():
                leave()
            if step and plan.validates(step) and step not in val:
                validate()  # cut off by what ended the start before this one
            for count, batch in _batches(job, plan, calls, clock):
                trace.before(step, step + count)
                state, metrics = train_steps[count].call(state, batch)
                step = clock.step = step + count
                trace.after(step, metrics)
                tracker.push(step, metrics)
                terminal.advance(step, job.steps)
                stopping = pod.stop.asked()
                if plan.stops(step) or stopping:
                    tracker.drain()
                    save()
                    if stopping:
                        leave()
                    if plan.validates(step):
                        validate()
            save(wait=True)  # anew, if the disk has refused the last one
            checkpoint.prune(manager, plan.keep, best)
            best_step, state = _choose(job, plan, manager, state, val, clock, timeline, terminal)
            metrics = {'val': dict(val[best_step])} if best_step in val else {}
            if plan.test:  # once, with the checkpoint that val chose
                metrics['test'] = test()
        log.close()
    result = {
        'regime': job.regime,
        'steps': plan.steps,
        'best_step': best_step,
        'examples_seen': plan.steps * plan.batch_size,
        **job.sizes(),
        'metrics': metrics,
        'skipped_images': len(job.train.skipped),
        'classes': list(job.train.classes),
        'seconds': clock.read(),
        'flops_per_step': _flops(train_steps),
    }
    folder.write_curves([m.name for m in job.task.metrics])
    folder.write_json('result.json', result)
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


def _start(
    job: Job,
    manager: ocp.CheckpointManager,
    seed: int,
    logged: list[dict[str, Any]],
    timeline: Timeline,
    terminal: Terminal,
) -> tuple[TrainState, dict]:
    """Resume, else restore, else init."""
    steps = sorted(manager.all_steps(), reverse=True)
    found = checkpoint.resume(manager, job.abstract, steps)
    if found is None:
        return first_state(job, seed), {'seconds': {}, 'window': {}}
    _say_damaged(found, timeline, terminal)
    if lost := max([timeline.reached, *steps, *(x['step'] for x in logged)]) - found.step:
        timeline.add('lost', step=found.step, steps=lost)
        terminal.say(f'{lost:,} steps that were done before are lost')
    return found.state, found.host


def _say_damaged(found: checkpoint.Resumed, timeline: Timeline, terminal: Terminal) -> None:
    for step, why in found.damaged.items():
        _report('damaged', step, timeline, terminal, why)
        terminal.say(
            f'the checkpoint of step {step} is damaged ({why}) and was put aside in '
            f'{checkpoint.DAMAGED}/{step}; that of step {found.step} is used'
        )


def _report(event: str, step: int, timeline: Timeline, terminal: Terminal, why: str) -> None:
    timeline.add(event, step=step, why=why)
    if event == 'failed':
        terminal.say(f'{why}; trying again')


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
        terminal.say(f'cut {cut:,} texts that are longer than {job.train.tokens} tokens')
    if job.plan:
        terminal.say(job.plan.summary())
    if step:
        terminal.say(f'resumes after step {step}')


def _compile(job: Job, plan: Schedule, calls: np.ndarray) -> tuple[dict[int, Compiled], Callable]:
    """The programs for as many steps as a call takes, and the evaluation step."""
    # None is left after a kill at the end.
    counts = np.unique(np.diff(calls)).tolist() or [1]
    train_steps = {count: compile_train_step(*job.program(count)) for count in counts}
    batch = abstract_batch(job.train.features, plan.eval_batch_size, job.mesh)
    return train_steps, compile_step(job.eval_step(), job.abstract, batch, job.mesh)


def _flops(train_steps: Mapping[int, Compiled]) -> float:
    """Of a single step."""
    count = min(train_steps)
    return train_steps[count].flops / count


def _work(job: Job, plan: Schedule, train_steps: Mapping[int, Compiled]) -> Work:
    chip = chip_of(job.mesh.devices.flat[0])
    remat = getattr(job.model, 'remat', 'none') != 'none'
    tokens = job.train.tokens
    return Work(
        unit='tokens' if tokens else 'examples',
        count=plan.batch_size * (tokens or 1),
        flops=job.model_flops() if chip and remat else _flops(train_steps),
        peak=chip.peak_bf16_flops * job.mesh.size if chip else 0.0,
    )


def _batches(job: Job, plan: Schedule, calls: np.ndarray, clock: Clock):
    """For each call (how many steps, their batches on the devices)."""
    part = Slice(jax.process_index(), jax.process_count())
    batches = train_batches(
        job.train, plan.batch_size, plan.seed, calls, part, plan.threads, plan.prefetch,
        plan.workers,
    )  # fmt: skip
    with contextlib.closing(batches):
        for count in np.diff(calls).tolist():
            with clock.phase('data_wait'):
                batch = next(batches)
            yield count, put_batch(batch, job.mesh, count)


def _choose(
    job: Job,
    plan: Schedule,
    manager: ocp.CheckpointManager,
    state: TrainState,
    val: Mapping[int, Mapping[str, float]],
    clock: Clock,
    timeline: Timeline,
    terminal: Terminal,
) -> tuple[int, TrainState]:
    """The best step and its state: the last one where nothing was evaluated."""
    ranked = metric.ranked(val, plan.best_metric, manager.all_steps())
    if not ranked or ranked[0] == plan.steps:
        return plan.steps, state
    with clock.phase('restore'):
        found = checkpoint.resume(manager, job.abstract, ranked)
    assert found is not None  # there is a step to read
    _say_damaged(found, timeline, terminal)
    return found.step, found.state


def _say_result(result: dict[str, Any], terminal: Terminal) -> None:
    for split, values in result['metrics'].items():
        said = ', '.join(f'{name} {number(value)}' for name, value in values.items())
        terminal.say(f'{split} at step {result["best_step"]}: {said}')
    seconds = {k: round(v, 1) for k, v in result['seconds'].items()}
    terminal.say(f'seconds: {json.dumps(seconds)[1:-1].replace(chr(34), "")}')
