"""The status of a run as text and as JSON."""

import time
from dataclasses import asdict
from datetime import datetime
from typing import Any

from jaxtrain.inspection.status import Status, Stop


def to_json(status: Status) -> dict[str, Any]:
    return asdict(status)


def to_text(status: Status) -> str:
    """Returns the text that `jaxtrain status` prints."""
    done = f'step {status.step:,} of {status.steps:,} ({100 * status.step / status.steps:.0f}%)'
    head = f'{status.workdir}: {status.state}, {done}'
    if status.state == 'running':
        doing = f'in {status.doing} for {spell(status.for_seconds)}'
        head += f', {doing}, last event {spell(status.heard)} ago on {status.host}'
    rows = [('starts', f'{status.starts}, the newest of {status.processes} process(es) with '
             f'{status.devices} device(s)')]  # fmt: skip
    if status.steps_per_s:
        text = f'{status.steps_per_s:.3g} steps/s, evaluations and checkpoints included'
        rows.append(('speed', text))
    if status.seconds_left is not None:
        at = datetime.fromtimestamp(time.time() + status.seconds_left)
        rows.append(('left', f'about {spell(status.seconds_left)}, until {at:%Y-%m-%d %H:%M}'))
    whole = sum(status.seconds.values())
    shares = ', '.join(
        f'{kind} {100 * value / max(whole, 1e-9):.1f}%'
        for kind, value in status.seconds.items()
        if kind != 'train' and value
    )
    rows.append(
        ('goodput', f'{100 * status.goodput:.1f}% of {spell(whole)} went into steps; {shares}')
    )
    rows += [('stopped', _stop_text(stop)) for stop in status.stops if stop.code != 0]
    if status.saved:
        best = f'; best {status.best:,}' if status.best is not None else ''
        rows.append(('saved', f'steps {", ".join(f"{s:,}" for s in status.saved)}{best}'))
    return '\n'.join([head, *(f'  {name:9}{text}' for name, text in rows)])


def spell(seconds: float) -> str:
    """Formats a duration in its two largest units."""
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
    lost = f'; {stop.lost:,} steps were repeated' if stop.lost else ''
    return f'{at} at step {stop.step:,}, {code}{why}{lost}'
