"""The training loop. `_run` and `_train` are the outline; the functions below fill it in.

`clock.step` counts finished optimizer steps. A step depends only on the state and on its number, so
a run that is killed and started again ends with the same result, bit for bit.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jaxtrain import storage
from jaxtrain.checkpoints import checkpoint, checkpoint_list
from jaxtrain.config import Config
from jaxtrain.costs.chips import chip_of
from jaxtrain.data.pipeline import Batch, Order, Slice, train_batches
from jaxtrain.data.sources.source import Source
from jaxtrain.errors import Preempted
from jaxtrain.loop.announce import describe, say_result
from jaxtrain.loop.cadence import Cadence, Calls, make_cadence
from jaxtrain.loop.extension import check_begun, extend
from jaxtrain.loop.ignored import Checked, require_used
from jaxtrain.loop.job import Job, first_state, make_job
from jaxtrain.loop.profiling import Trace
from jaxtrain.loop.recorder import Recorder, Work
from jaxtrain.loop.session import Session
from jaxtrain.parallel.compile import Compiled, compile_step, compile_train_step
from jaxtrain.parallel.mesh import abstract_batch, put_batch
from jaxtrain.pod.join import Pod
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.events import Timeline
from jaxtrain.runs.folder import RunDir
from jaxtrain.runs.metrics_log import read_metrics, val_of
from jaxtrain.runs.provenance import provenance
from jaxtrain.step import evaluate
from jaxtrain.step.state import TrainState
from jaxtrain.terminal import Terminal


@dataclass(frozen=True)
class Programs:
    """The compiled programs of a run.

    Attributes:
      calls: the steps between calls of the train step.
      train: the train step by the number of steps in a call.
      evaluate: the evaluation step.
    """

    calls: Calls
    train: Mapping[int, Compiled]
    evaluate: Callable

    @property
    def flops(self) -> float:
        """Floating point operations of a single train step."""
        count = min(self.train)
        return self.train[count].flops / count


@dataclass(frozen=True)
class Loop:
    """What the outline works with, except for the state."""

    job: Job
    cadence: Cadence
    session: Session
    recorder: Recorder
    programs: Programs


def train(
    cfg: Config, workdir: str | Path, terminal: Terminal, pod: Pod, kin: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Trains what the config describes, or resumes where an earlier start stopped.

    Args:
      cfg: the config.
      workdir: the run directory; the result of a finished run is returned unchanged, unless
        the config has more steps, which it then takes.
      terminal: prints progress.
      pod: the processes that train together.
      kin: as in `config.streams.begin`.

    Returns:
      The content of result.json.

    Raises:
      UserError: wrong input, a loss that is not finite, or no room for checkpoints.
      Preempted: stopped by SIGTERM, with the state saved.
    """
    folder = RunDir(storage.path(workdir), writes=jax.process_index() == 0)
    timeline = Timeline(folder.path, folder.writes)
    clock = Clock(listener=timeline.phase)
    pod.peers.position, pod.peers.on_end = clock.position, timeline.end
    with clock.phase('init'):
        folder.check_writable()
        job, cadence = prepare(cfg, bool(checkpoint_list.saved_steps(workdir)), workdir, kin)
        longer = check_begun(folder, job, cfg.unread())
        finished = folder.result()
        if finished and finished['steps'] >= job.steps:
            terminal.say(f'{workdir} is finished; its result.json stands')
            return finished
        # Only after the check that the folder belongs to this run.
        devices, git = job.layout.mesh.size, provenance()['git']
        if longer:
            extend(folder, job)
        timeline.begin(clock, job.steps, jax.process_count(), devices, git)
        if job.start.resumes:
            timeline.open()
    with timeline:
        try:
            recorder = Recorder(job.optimizer.learning_rate, cadence, job.learner.task.names)
            manager = checkpoint.open_manager(folder.path, cadence.keep, recorder.best)
            session = Session(folder, clock, timeline, terminal, pod, manager)
            result = _run(job, cadence, session, recorder)
        except Exception as error:
            pod.peers.judge(error)  # before the timeline records why the start ended
            raise
    say_result(result, terminal)
    return result


def prepare(
    cfg: Config, resumes: bool = False, workdir: str | Path = '', kin: tuple[int, ...] = ()
) -> tuple[Job, Cadence]:
    """Makes all checks that are possible before anything is allocated, written or compiled.

    Args:
      cfg: the config.
      resumes, workdir, kin: as in `make_job`.

    Raises:
      UserError: wrong input of any kind, including keys that nothing reads.
    """
    job = make_job(cfg, resumes, workdir, kin=kin)
    cadence = make_cadence(job.cfg, job)
    return require_used(cfg, Checked(job, cadence)), cadence


def _run(job: Job, cadence: Cadence, session: Session, recorder: Recorder) -> dict[str, Any]:
    """Runs one start, from the first state or the last checkpoint to result.json."""
    folder, clock = session.folder, session.clock
    trace = Trace(folder.path / 'profile', cadence.profile if folder.writes else None)
    with session.manager, session.watchdog(cadence.budgets), session.terminal:
        with clock.phase('restore'):
            state, host = _start(job, cadence, session, recorder)
        clock.add(host['seconds'])
        # Only after the weights could be read.
        folder.claim(job.config, job.data(), job.streams, job.cfg.unread())
        session.timeline.open()
        describe(job, session)
        with clock.phase('compile'):
            programs = _compile(job, cadence, clock.step)
        recorder.open(session, _work(job, cadence, programs), host['window'])
        loop = Loop(job, cadence, session, recorder, programs)
        with trace, clock.phase('train'):
            state = _train(loop, state, trace)
            _save(loop, state, wait=True)  # once more, if the last save failed
            checkpoint.prune(session.manager, cadence.keep, recorder.best)
            best_step, state = _choose(loop, state)
            metrics = {'val': dict(recorder.val[best_step])} if best_step in recorder.val else {}
            if cadence.test:  # once, with the checkpoint that val chose
                metrics['test'] = _test(loop, state, best_step)
        recorder.close()
    result = _result(loop, best_step, metrics)
    folder.write_curves(job.learner.task.names)
    folder.write_json('result.json', result)
    return result


def _train(loop: Loop, state: TrainState, trace: Trace) -> TrainState:
    """Takes the remaining steps and returns the state after the last one.

    Each call of a program takes one or more steps, and never passes one after which something but
    the log is due.
    """
    cadence, session, recorder = loop.cadence, loop.session, loop.recorder
    clock, stop = session.clock, session.pod.stop
    if stop.asked():
        _leave(loop, state)
    if clock.step and cadence.validates(clock.step) and clock.step not in recorder.val:
        _validate(loop, state)  # interrupted by the end of the previous start
    for count, batch in _batches(loop):
        step = clock.step + count
        trace.before(clock.step, step)
        # The call donates the buffers of the state, so the previous state is invalid afterwards.
        state, metrics = loop.programs.train[count].call(state, batch)
        clock.step = step
        trace.after(step, metrics)
        recorder.push(step, metrics)
        session.terminal.advance(step, loop.job.steps)
        stopping = stop.asked()  # the same answer on all processes
        if cadence.stops(step) or stopping:
            # A state is saved or evaluated only when all losses up to it are known to be finite,
            # and their lines are written.
            recorder.drain()
            _save(loop, state)
            if stopping:
                _leave(loop, state)
            # Save before evaluating: an interrupted evaluation is rerun once on resume.
            if cadence.validates(step):
                _validate(loop, state)
    return state


def _save(loop: Loop, state: TrainState, wait: bool = False) -> None:
    """Starts to save a checkpoint of the clock's step; with `wait`, returns when it is on disk."""
    session, recorder = loop.session, loop.recorder
    recorder.sync()  # the lines up to a step are on disk before its checkpoint
    with session.clock.phase('save'):
        host = {'seconds': session.clock.read(), 'window': recorder.window}
        checkpoint.save(session.manager, session.clock.step, state, host, session.say_failed, wait)


def _leave(loop: Loop, state: TrainState) -> NoReturn:
    """Saves the state and ends a start that was asked to stop."""
    step, folder = loop.session.clock.step, loop.session.folder
    if not step:
        raise Preempted('stopped before the first step')
    _save(loop, state, wait=True)
    raise Preempted(f'stopped at step {step} of {loop.job.steps}, state saved in {folder.path}')


def _read(loop: Loop, state: TrainState, source: Source | None) -> dict[str, np.ndarray] | None:
    """The metrics of each example of a source; None if the run was asked to stop."""
    assert source is not None  # callers check that the split exists
    stopped, mesh = loop.session.pod.stop.asked, loop.job.layout.mesh

    def rows(batch: Batch) -> dict[str, jax.Array]:
        return loop.programs.evaluate(state, put_batch(batch, mesh))

    with loop.session.clock.phase('eval'):
        return evaluate.per_example(rows, source, loop.cadence.eval_batch_size, stopped)


def _validate(loop: Loop, state: TrainState) -> None:
    values = _read(loop, state, loop.cadence.val)
    if values is None:
        _leave(loop, state)
    loop.recorder.validated(loop.session.clock.step, loop.job.learner.task.summarize(values))


def _test(loop: Loop, state: TrainState, best_step: int) -> dict[str, float]:
    folder = loop.session.folder
    values = _read(loop, state, loop.cadence.test)
    if values is None:
        raise Preempted(f'stopped during the test; the state is saved in {folder.path}')
    folder.write_npz('test.npz', values)
    means = loop.job.learner.task.summarize(values)
    loop.recorder.tested(best_step, means)
    return means


def _choose(loop: Loop, state: TrainState) -> tuple[int, TrainState]:
    """The best step and its state, or the last one if nothing was evaluated."""
    session = loop.session
    ranked = loop.recorder.ranked(session.manager.all_steps())
    if not ranked or ranked[0] == loop.cadence.steps:
        return loop.cadence.steps, state
    with session.clock.phase('restore'):
        resumed = checkpoint.resume(session.manager, loop.job.abstract, ranked)
    assert resumed is not None  # `ranked` is not empty
    session.say_damaged(resumed)
    return resumed.step, resumed.state


def _result(loop: Loop, best_step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The content of result.json."""
    job, cadence = loop.job, loop.cadence
    return {
        'regime': job.regime,
        'steps': cadence.steps,
        'best_step': best_step,
        'examples_seen': cadence.steps * cadence.batch_size,
        **job.sizes(),
        'metrics': metrics,
        'skipped_images': len(job.train.skipped),
        'classes': list(job.train.classes),
        'seconds': loop.session.clock.read(),
        'flops_per_step': loop.programs.flops,
    }


def _start(
    job: Job, cadence: Cadence, session: Session, recorder: Recorder
) -> tuple[TrainState, dict[str, Any]]:
    """Resumes, or restores, or initialises: returns the state, and what was saved beside it.

    Sets the step of the clock and the history of the recorder.
    """
    logged = read_metrics(session.folder.path)
    steps = sorted(session.manager.all_steps(), reverse=True)
    resumed = checkpoint.resume(session.manager, job.abstract, steps)
    if resumed is None:
        return first_state(job, job.streams.seed), {'seconds': {}, 'window': {}}
    session.say_damaged(resumed)
    reached = max([session.timeline.reached, *steps, *(x['step'] for x in logged)])
    if lost := reached - resumed.step:
        session.timeline.add('lost', step=resumed.step, steps=lost)
        session.terminal.say(f'{lost:,} steps that were done before are lost')
    session.clock.step = int(resumed.state.step)
    recorder.val |= {s: v for s, v in val_of(logged).items() if s <= session.clock.step}
    return resumed.state, resumed.host


def _compile(job: Job, cadence: Cadence, step: int) -> Programs:
    """Compiles the programs of a run that continues after a step."""
    calls = cadence.calls(step)
    train_steps = {count: compile_train_step(*job.program(count)) for count in calls.counts}
    mesh = job.layout.mesh
    batch = abstract_batch(job.train.features, cadence.eval_batch_size, mesh)
    return Programs(calls, train_steps, compile_step(job.eval_step(), job.abstract, batch, mesh))


def _work(job: Job, cadence: Cadence, programs: Programs) -> Work:
    mesh = job.layout.mesh
    chip = chip_of(mesh.devices.flat[0])
    remat = getattr(job.learner.model, 'remat', 'none') != 'none'
    tokens = job.train.tokens
    return Work(
        unit='tokens' if tokens else 'examples',
        count=cadence.batch_size * (tokens or 1),
        flops=job.model_flops() if chip and remat else programs.flops,
        peak=chip.peak_bf16_flops * mesh.size if chip else 0.0,
    )


def _batches(loop: Loop) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """Yields (number of steps, their batches on the devices) for each call."""
    job, cadence, calls = loop.job, loop.cadence, loop.programs.calls
    part = Slice(jax.process_index(), jax.process_count())
    order = Order(cadence.batch_size, job.streams.seed, part, job.streams.version)
    batches = train_batches(job.train, calls, order, cadence.reading)
    with contextlib.closing(batches):
        for begin, end in itertools.pairwise(calls):
            with loop.session.clock.phase('data_wait'):
                batch = next(batches)
            yield end - begin, put_batch(batch, job.layout.mesh, end - begin)
