"""The status of a run as text and as JSON."""

import time
from dataclasses import asdict
from datetime import datetime
from typing import Any

from jaxtrain.inspection.status import Status, Stop


def to_json(found: Status) -> dict[str, Any]:
    return asdict(found)


def to_text(found: Status) -> str:
    """The same in a few lines."""
    done = f'step {found.step:,} of {found.steps:,} ({100 * found.step / found.steps:.0f}%)'
    head = f'{found.workdir}: {found.state}, {done}'
    if found.state == 'running':
        doing = f'in {found.doing} for {spell(found.for_seconds)}'
        head += f', {doing}, heard of {spell(found.heard)} ago on {found.host}'
    rows = [('starts', f'{found.starts}, the newest of {found.processes} process(es) with '
             f'{found.devices} device(s)')]  # fmt: skip
    if found.steps_per_s:
        text = f'{found.steps_per_s:.3g} steps/s, evaluations and checkpoints included'
        rows.append(('speed', text))
    if found.seconds_left is not None:
        at = datetime.fromtimestamp(time.time() + found.seconds_left)
        rows.append(('left', f'about {spell(found.seconds_left)}, until {at:%Y-%m-%d %H:%M}'))
    whole = sum(found.seconds.values())
    shares = ', '.join(
        f'{kind} {100 * value / max(whole, 1e-9):.1f}%'
        for kind, value in found.seconds.items()
        if kind != 'train' and value
    )
    rows.append(
        ('goodput', f'{100 * found.goodput:.1f}% of {spell(whole)} went into steps; {shares}')
    )
    rows += [('stopped', _stop_text(stop)) for stop in found.stops if stop.code != 0]
    if found.saved:
        best = f'; best {found.best:,}' if found.best is not None else ''
        rows.append(('saved', f'steps {", ".join(f"{s:,}" for s in found.saved)}{best}'))
    return '\n'.join([head, *(f'  {name:9}{text}' for name, text in rows)])


def spell(seconds: float) -> str:
    """A span of time in its two largest units."""
    if seconds < 60:
        return f'{seconds:.0f} s'
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if minutes < 60:
        return f'{minutes} min {seconds % 60:.0f} s'
    if hours < 24:
        return f'{hours} h {minutes % 60} min'
    return f'{days} d {hours % 24} h'


def _stop_text(stop: Stop) -> str:
    at = f'{datetime.fromtimestamp(stop.time):%Y-%m-%d %H:%M:%S}'
    code = 'no exit code' if stop.code is None else f'exit code {stop.code}'
    why = f', {stop.why}' if stop.why else ''
    lost = f'; {stop.lost:,} steps were done again' if stop.lost else ''
    return f'{at} at step {stop.step:,}, {code}{why}{lost}'
