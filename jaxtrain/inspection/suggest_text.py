"""A suggestion as text and as JSON."""

from typing import Any

from jaxtrain.inspection.plan_text import quantity
from jaxtrain.inspection.suggest import Suggestion, Trial, words
from jaxtrain.terminal import number, table


def to_text(suggestion: Suggestion) -> str:
    """Returns the table of trials, followed by the flags of the best ones."""
    columns = ('tried', 'fits', 'peak bytes', 'seconds a step', 'examples per second', 'MFU')
    rows = [(words(t.changes), *_cells(t)) for t in suggestion.trials]
    best, other = suggestion.best, suggestion.other
    if best is None:
        lines = ['no trial fits with this batch' if other else 'no trial fits: use more devices']
    else:
        lines = [f'fastest with this batch: {best.flags or "the unchanged config"}']
    if other:
        ratio = f'{number(other.speed / best.speed)} times as many ' if best else ''
        speed = ratio or quantity(other.speed)
        lines.append(f'{speed}examples per second, with another batch: {other.flags}')
        lines.append('(another batch is another experiment: adapt learning rate and warm-up)')
    return '\n'.join([table(columns, rows), *lines])


def to_json(suggestion: Suggestion) -> dict[str, Any]:
    """Returns the entry of plan.json: {'tried': [...], 'flags': ..., 'batch_flags': ...}.

    The flags are '' for the unchanged config, and None if no trial fits, or no trial with another
    batch is faster.
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
        for t in suggestion.trials
    ]
    flags = {'flags': suggestion.best, 'batch_flags': suggestion.other}
    return {'tried': tried} | {name: t.flags if t else None for name, t in flags.items()}


def _cells(trial: Trial) -> tuple[str, ...]:
    if trial.plan is None:
        return ('cannot be run', '-', '-', '-', '-')
    peak = quantity(trial.plan.compiled.peak_bytes)
    if not trial.plan.fits:
        return ('no', peak, '-', '-', '-')
    step, mfu = trial.plan.seconds['step'], trial.plan.outlook['mfu']
    return ('yes', peak, number(step), quantity(trial.speed), f'{100 * mfu:.1f}%')
