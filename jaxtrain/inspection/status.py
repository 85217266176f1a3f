"""What a run is doing, how its time was spent, when it is done, and why it last stopped.

All of it is told from events.jsonl (events.py), so it works beside the run, from elsewhere, and
when the run is long gone.
"""

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain import storage
from jaxtrain.checkpoints import checkpoint_list
from jaxtrain.errors import UserError
from jaxtrain.runs.events import ALIVE_EVERY, NAME
from jaxtrain.runs.run import read_metrics

# Seconds after which a run that says nothing counts as killed, where its process cannot be asked.
SILENT = 3 * ALIVE_EVERY
KINDS = ('train', 'lost', 'init', 'restore', 'compile', 'eval', 'save', 'other', 'down')


@dataclass(frozen=True)
class Stop:
    """Why a start ended.

    Attributes:
      start: which, from 0.
      time: of its last word, seconds since 1970.
      code: its exit code, None if it was killed.
      why: in words.
      step: the last that it is known to have done.
      lost: steps that the next start had to do again.
    """

    start: int
    time: float
    code: int | None
    why: str
    step: int
    lost: int


@dataclass(frozen=True)
class Status:
    """Of a run.

    Attributes:
      state: 'running', 'finished', 'stopped' (by exit code 42), 'failed' (another) or 'killed'.
      doing: the phase that a running one is in, and `for_seconds` so long.
      step, steps: done, and of the whole run.
      steps_per_s: of its newest start that got on, evaluations and checkpoints included; 0 if none.
      seconds_left: at that speed.
      seconds: of the whole time since the run began, by KINDS; `goodput` is the share of 'train'.
      starts, processes, devices, host: of the newest start.
      heard: seconds since its last word.
      stops: why each earlier start ended, and the newest if it has.
      saved, best: steps with whole checkpoints, and the one with the best val metric.
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


def status(workdir: str) -> Status:
    """Reads the timeline of a run. UserError if the folder is no run, or has none."""
    folder = storage.path(workdir)
    events = storage.read_lines(folder / NAME)
    if not events:
        raise UserError(
            f'--workdir={workdir} has no {NAME}: it is not a run, or has not begun to train; '
            'give the --workdir of one that has'
        )
    saved = checkpoint_list.saved_steps(workdir)
    lines = read_metrics(folder)
    logged = max((line['step'] for line in lines), default=0)
    best = checkpoint_list.best_step(workdir)
    return summarize(workdir, events, logged, saved, best, time.time(), is_alive(events))


def is_alive(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the newest start still runs: by its process on this machine, else by its age."""
    if events[-1]['event'] == 'exit':
        return False
    start = [event for event in events if event['event'] == 'start'][-1]
    processes = Path('/proc')
    if start['host'] != socket.gethostname() or not processes.is_dir():
        return time.time() - events[-1]['time'] < SILENT
    try:
        said = (processes / str(start['pid']) / 'stat').read_text()
    except OSError:
        return False
    return said.rpartition(') ')[2][0] != 'Z'  # Z: it has ended, and nobody has looked yet


def summarize(
    workdir: str,
    events: Sequence[Mapping[str, Any]],
    logged: int,
    saved: list[int],
    best: int | None,
    now: float,
    alive: bool,
) -> Status:
    """The status that events tell.

    Args:
      workdir: the run directory, for the reader.
      events: in order, at least one.
      logged: the last step in metrics.jsonl.
      saved, best: as of Status.
      now: seconds since 1970.
      alive: whether the newest start still runs.
    """
    starts = [
        [event for event in events if event['start'] == number]
        for number in sorted({event['start'] for event in events})
    ]
    newest = starts[-1]
    last, first = newest[-1], newest[0]
    until = now if alive else last['time']
    step = max(logged, *(event['step'] for event in newest))
    # A start goes on from the step of its first event after the checkpoint was read.
    resumed = [_resumed(own) for own in starts] + [step]
    seconds, stops = _account(starts, resumed, until, alive)
    whole = max(sum(seconds.values()), 1e-9)
    rate = next((r for own in reversed(starts) if (r := _rate(own))), 0.0)
    left = (first['steps'] - step) / rate if rate and alive else None
    doing, since = _doing(newest)
    return Status(
        workdir=str(workdir),
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
        saved=saved,
        best=best,
    )


def _account(
    starts: Sequence[Sequence[Mapping[str, Any]]], resumed: Sequence[int], until: float, alive: bool
) -> tuple[dict[str, float], list[Stop]]:
    """(seconds by KINDS, why each start ended).

    Args:
      starts: the events of each.
      resumed: the step that each went on from, and the last one done.
      until: when the newest was last heard of.
      alive: whether it still runs.
    """
    seconds = dict.fromkeys(KINDS, 0.0)
    stops = []
    for number, own in enumerate(starts):
        is_newest = number == len(starts) - 1
        kept = resumed[-1] if is_newest else max(resumed[number + 1], resumed[number])
        ends = until if is_newest else own[-1]['time']
        lost = 0 if is_newest else _lost(starts[number + 1])
        _add(seconds, own, kept, lost, ends)
        if not is_newest:
            began = starts[number + 1][0]
            seconds['down'] += max(0.0, began['time'] - _init(starts[number + 1]) - ends)
        if not (is_newest and alive):
            stops.append(_stop(own, kept + lost, lost))
    return seconds, stops


def _resumed(own: Sequence[Mapping[str, Any]]) -> int:
    """The step that a start went on from: 0 if it did not come so far as to read a checkpoint."""
    return next((event['step'] for event in own if event['event'] == 'restore'), 0)


def _init(own: Sequence[Mapping[str, Any]]) -> float:
    """Seconds before the `start` event, which is written at the end of init."""
    return next((event['seconds'] for event in own if event['event'] == 'init'), 0.0)


def _add(
    seconds: dict[str, float],
    own: Sequence[Mapping[str, Any]],
    kept: int,
    lost: int,
    ends: float,
) -> None:
    """Adds the seconds of a start: its steps up to `kept` were of use, `lost` more were not."""
    for event in own:
        if event['event'] in seconds and 'seconds' in event:
            seconds[event['event']] += event['seconds']
    compiled = next((event for event in own if event['event'] == 'compile'), None)
    ready = compiled['time'] if compiled else ends
    before = sum(e['seconds'] for e in own if e['event'] in _SETUP and e['time'] <= ready)
    seconds['other'] += max(0.0, ready - own[0]['time'] - before)
    within = sum(e['seconds'] for e in own if e['event'] in _WITHIN and e['time'] > ready)
    training = max(0.0, ends - ready - within)
    begun = compiled['step'] if compiled else 0
    reached = max(kept + lost, begun)
    share = (max(kept, begun) - begun) / (reached - begun) if reached > begun else 0.0
    # A start that was killed at once may have done steps that nobody knows of.
    seconds['train'] += training * share
    seconds['lost' if reached > begun else 'other'] += training * (1 - share)


_SETUP, _WITHIN = ('restore', 'compile'), ('eval', 'save', 'restore')


def _lost(own: Sequence[Mapping[str, Any]]) -> int:
    """Steps that a start had to do again."""
    return next((event['steps'] for event in own if event['event'] == 'lost'), 0)


def _rate(own: Sequence[Mapping[str, Any]]) -> float:
    compiled = next((event for event in own if event['event'] == 'compile'), None)
    last = max(own, key=lambda event: (event['step'], -event['time']))
    if compiled is None or last['step'] <= compiled['step'] or last['time'] <= compiled['time']:
        return 0.0
    return (last['step'] - compiled['step']) / (last['time'] - compiled['time'])


def _doing(own: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
    """(phase, since when) of a start that runs."""
    last = own[-1]
    if last['event'] == 'alive':
        return last['phase'], last['time'] - last['seconds']
    if last['event'] == 'begin':
        return last['phase'], last['time']
    compiled = any(event['event'] == 'compile' for event in own)
    return 'train' if compiled else 'init', last['time']


def _ended(last: Mapping[str, Any]) -> str:
    if last['event'] != 'exit':
        return 'killed'
    return {0: 'finished', 42: 'stopped'}.get(last['code'], 'failed')


def _stop(own: Sequence[Mapping[str, Any]], reached: int, lost: int) -> Stop:
    last = own[-1]
    exits = last['event'] == 'exit'
    return Stop(
        start=last['start'],
        time=last['time'],
        code=last['code'] if exits else None,
        why=last['why'] if exits else f'killed in {_doing(own)[0]}, or its machine is gone',
        step=reached,
        lost=lost,
    )
