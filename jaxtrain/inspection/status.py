"""The status of a run: its phase, how its time was spent, when it will finish, and why it stopped.

It is computed from the run directory, mainly from events.jsonl (runs/events.py). So it works while
the run is active, on other machines, and after the run has ended.
"""

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain import storage
from jaxtrain.checkpoints import checkpoint_list
from jaxtrain.errors import UserError
from jaxtrain.runs.events import ALIVE_EVERY, NAME
from jaxtrain.runs.metrics_log import read_metrics

# Seconds without an event after which a run counts as killed, if its process cannot be checked.
SILENT = 3 * ALIVE_EVERY
KINDS = ('train', 'lost', 'init', 'restore', 'compile', 'eval', 'save', 'other', 'down')


@dataclass(frozen=True)
class Stop:
    """Why a start ended.

    Attributes:
      start: number of the start, from 0.
      time: time of its last event, in seconds since 1970.
      code: exit code; None if it was killed.
      why: the reason as text.
      step: the last step that it is known to have done.
      lost: steps that the next start had to repeat.
    """

    start: int
    time: float
    code: int | None
    why: str
    step: int
    lost: int


@dataclass(frozen=True)
class Status:
    """The status of a run.

    Attributes:
      state: 'running', 'finished', 'stopped' (exit code 42), 'failed' (another code) or 'killed'.
      doing: the current phase of a running run, and `for_seconds` its duration so far.
      step, steps: finished steps, and the length of the run.
      steps_per_s: speed of the newest start that finished steps, including evaluations and
        checkpoints; 0 if no start did.
      seconds_left: remaining seconds at that speed.
      seconds: seconds since the run began, by KINDS; `goodput` is the share of 'train'.
      starts: number of starts.
      processes, devices, host: those of the newest start.
      heard: seconds since the last event.
      stops: why each start ended; the newest is included if it has ended.
      saved, best: steps with complete checkpoints, and the one with the best val metric.
    """

    workdir: str
    state: str
    doing: str
    for_seconds: float
    step: int
    steps: int
    steps_per_s: float
    seconds_left: float | None
    seconds: dict[str, float]
    goodput: float
    starts: int
    processes: int
    devices: int
    host: str
    heard: float
    stops: list[Stop]
    saved: list[int]
    best: int | None


@dataclass(frozen=True)
class Contents:
    """What a run directory holds.

    Attributes:
      workdir: the run directory.
      events: the events in order, at least one.
      logged: the last step in metrics.jsonl.
      saved, best: as in Status.
    """

    workdir: str
    events: Sequence[Mapping[str, Any]]
    logged: int
    saved: list[int]
    best: int | None


def status(workdir: str) -> Status:
    """Reads the status of a run. UserError if the folder has no timeline."""
    folder = storage.path(workdir)
    events = storage.read_lines(folder / NAME)
    if not events:
        raise UserError(
            f'--workdir={workdir} has no {NAME}: it is not a run, or has not started to train; '
            'give the --workdir of a run that has'
        )
    saved = checkpoint_list.saved_steps(workdir)
    lines = read_metrics(folder)
    logged = max((line['step'] for line in lines), default=0)
    best = checkpoint_list.best_step(workdir)
    contents = Contents(str(workdir), events, logged, saved, best)
    return summarize(contents, time.time(), is_alive(events))


def is_alive(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the newest start still runs: by its process if that is on this machine, else by the
    time since its last event.
    """
    if events[-1]['event'] == 'exit':
        return False
    start = [event for event in events if event['event'] == 'start'][-1]
    processes = Path('/proc')
    if start['host'] != socket.gethostname() or not processes.is_dir():
        return time.time() - events[-1]['time'] < SILENT
    try:
        stat = (processes / str(start['pid']) / 'stat').read_text()
    except OSError:
        return False
    return stat.rpartition(') ')[2][0] != 'Z'  # Z: a zombie, which has ended


def summarize(contents: Contents, now: float, alive: bool) -> Status:
    """Computes the status of a run.

    Args:
      contents: what its directory holds.
      now: seconds since 1970.
      alive: whether the newest start still runs.
    """
    events = contents.events
    starts = [
        [event for event in events if event['start'] == number]
        for number in sorted({event['start'] for event in events})
    ]
    newest = starts[-1]
    last, first = newest[-1], newest[0]
    until = now if alive else last['time']
    step = max(contents.logged, *(event['step'] for event in newest))
    # A start continues from the step of its first event after the checkpoint was read.
    resumed = [_resumed(start) for start in starts] + [step]
    seconds, stops = _account(starts, resumed, until, alive)
    whole = max(sum(seconds.values()), 1e-9)
    rate = next((r for start in reversed(starts) if (r := _rate(start))), 0.0)
    left = (first['steps'] - step) / rate if rate and alive else None
    doing, since = _doing(newest)
    return Status(
        workdir=contents.workdir,
        state='running' if alive else _ended(last),
        doing=doing if alive else '',
        for_seconds=round(max(0.0, now - since), 1) if alive else 0.0,
        step=step,
        steps=first['steps'],
        steps_per_s=rate,
        seconds_left=left,
        seconds={kind: round(value, 1) for kind, value in seconds.items()},
        goodput=seconds['train'] / whole,
        starts=len(starts),
        processes=first['processes'],
        devices=first['devices'],
        host=first['host'],
        heard=round(max(0.0, now - last['time']), 1),
        stops=stops,
        saved=contents.saved,
        best=contents.best,
    )


def _account(
    starts: Sequence[Sequence[Mapping[str, Any]]], resumed: Sequence[int], until: float, alive: bool
) -> tuple[dict[str, float], list[Stop]]:
    """Returns (seconds by KINDS, why each start ended).

    Args:
      starts: the events of each start.
      resumed: the step from which each start continued, and the last finished step.
      until: the end of the newest start so far.
      alive: whether the newest start still runs.
    """
    seconds = dict.fromkeys(KINDS, 0.0)
    stops = []
    for number, start in enumerate(starts):
        is_newest = number == len(starts) - 1
        kept = resumed[-1] if is_newest else max(resumed[number + 1], resumed[number])
        ends = until if is_newest else start[-1]['time']
        lost = 0 if is_newest else _lost(starts[number + 1])
        for kind, value in _spent(start, kept, lost, ends):
            seconds[kind] += value
        if not is_newest:
            began = starts[number + 1][0]
            seconds['down'] += max(0.0, began['time'] - _init(starts[number + 1]) - ends)
        if not (is_newest and alive):
            stops.append(_stop(start, kept + lost, lost))
    return seconds, stops


def _resumed(start: Sequence[Mapping[str, Any]]) -> int:
    """The step from which a start continued; 0 if it ended before it read a checkpoint."""
    return next((event['step'] for event in start if event['event'] == 'restore'), 0)


def _init(start: Sequence[Mapping[str, Any]]) -> float:
    """Seconds before the `start` event, which is written at the end of init."""
    return next((event['seconds'] for event in start if event['event'] == 'init'), 0.0)


def _spent(
    start: Sequence[Mapping[str, Any]], kept: int, lost: int, ends: float
) -> Iterator[tuple[str, float]]:
    """Yields (kind, seconds) of a start: its steps up to `kept` were kept, and `lost` more lost."""
    for event in start:
        if event['event'] in KINDS and 'seconds' in event:
            yield event['event'], event['seconds']
    compiled = next((event for event in start if event['event'] == 'compile'), None)
    ready = compiled['time'] if compiled else ends
    before = sum(e['seconds'] for e in start if e['event'] in _SETUP and e['time'] <= ready)
    yield 'other', max(0.0, ready - start[0]['time'] - before)
    within = sum(e['seconds'] for e in start if e['event'] in _WITHIN and e['time'] > ready)
    training = max(0.0, ends - ready - within)
    begun = compiled['step'] if compiled else 0
    reached = max(kept + lost, begun)
    share = (max(kept, begun) - begun) / (reached - begun) if reached > begun else 0.0
    # A start that was killed early may have done steps that no event records.
    yield 'train', training * share
    yield 'lost' if reached > begun else 'other', training * (1 - share)


_SETUP, _WITHIN = ('restore', 'compile'), ('eval', 'save', 'restore')


def _lost(start: Sequence[Mapping[str, Any]]) -> int:
    """Number of steps that a start had to repeat."""
    return next((event['steps'] for event in start if event['event'] == 'lost'), 0)


def _rate(start: Sequence[Mapping[str, Any]]) -> float:
    compiled = next((event for event in start if event['event'] == 'compile'), None)
    last = max(start, key=lambda event: (event['step'], -event['time']))
    if compiled is None or last['step'] <= compiled['step'] or last['time'] <= compiled['time']:
        return 0.0
    return (last['step'] - compiled['step']) / (last['time'] - compiled['time'])


def _doing(start: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
    """Returns (phase, time of its beginning) of a running start."""
    last = start[-1]
    if last['event'] == 'alive':
        return last['phase'], last['time'] - last['seconds']
    if last['event'] == 'begin':
        return last['phase'], last['time']
    compiled = any(event['event'] == 'compile' for event in start)
    return 'train' if compiled else 'init', last['time']


def _ended(last: Mapping[str, Any]) -> str:
    if last['event'] != 'exit':
        return 'killed'
    return {0: 'finished', 42: 'stopped'}.get(last['code'], 'failed')


def _stop(start: Sequence[Mapping[str, Any]], reached: int, lost: int) -> Stop:
    last = start[-1]
    exits = last['event'] == 'exit'
    return Stop(
        start=last['start'],
        time=last['time'],
        code=last['code'] if exits else None,
        why=last['why'] if exits else f'killed in {_doing(start)[0]}, or its machine is gone',
        step=reached,
        lost=lost,
    )
