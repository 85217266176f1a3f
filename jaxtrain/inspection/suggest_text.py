"""What `suggest` tried and found, as text and as JSON."""

from typing import Any

from jaxtrain.inspection.plan_text import quantity
from jaxtrain.inspection.suggest import Suggestion, Trial, words
from jaxtrain.terminal import number, table


def to_text(found: Suggestion) -> str:
    """The table of what was tried, the best at the end, as flags."""
    columns = ('tried', 'fits', 'peak bytes', 'seconds a step', 'examples per second', 'MFU')
    rows = [(words(t.changes), *_cells(t)) for t in found.trials]
    best, other = found.best, found.other
    if best is None:
        said = ['none fits with this batch' if other else 'none of them fits: take more devices']
    else:
        said = [f'fastest with this batch: {best.flags or "the config as it is"}']
    if other:
        times = f'{number(other.speed / best.speed)} times as many' if best else 'so many'
        said.append(f'{times} examples per second, with another batch: {other.flags}')
        said.append('(another batch is another experiment: learning rate and warm-up are for you)')
    return '\n'.join([table(columns, rows), *said])


def to_json(found: Suggestion) -> dict[str, Any]:
    """For plan.json: {'tried': [...], 'flags': ..., 'batch_flags': ...}; of flags, '' stands for
    the config as it is, and None for none that fits, or none with another batch that is faster.
    """
    tried = [
        {
            'changes': t.changes,
            'reason': t.reason,
            'fits': t.plan.fits if t.plan else None,
            'peak_bytes': t.plan.compiled.peak_bytes if t.plan else None,
            'seconds': t.plan.seconds.get('step') if t.plan else None,
            'examples_per_second': t.speed or None,
        }
        for t in found.trials
    ]
    flags = {'flags': found.best, 'batch_flags': found.other}
    return {'tried': tried} | {name: t.flags if t else None for name, t in flags.items()}


def _cells(trial: Trial) -> tuple[str, ...]:
    if trial.plan is None:
        return ('cannot be run', '-', '-', '-', '-')
    peak = quantity(trial.plan.compiled.peak_bytes)
    if not trial.plan.fits:
        return ('no', peak, '-', '-', '-')
    step, mfu = trial.plan.seconds['step'], trial.plan.outlook['mfu']
    return ('yes', peak, number(step), quantity(trial.speed), f'{100 * mfu:.1f}%')
