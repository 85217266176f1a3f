"""A plan as text and as JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtrain.inspection.plan import Plan
from jaxtrain.terminal import number, table

PREFIXES = ('', 'k', 'M', 'G', 'T', 'P', 'E')
NOTES = (
    'times are estimates that have not been compared with hardware; use them to compare plans. '
    "cycles: the compiler's estimate without messages, at the clock at which the matrix units of "
    'the chip reach its published peak. roofline: operations over that peak, or bytes over the '
    'bandwidth of its memory (the compiler also counts bytes that stay in caches), whichever takes '
    'longer. Messages are added to both: their bytes over the bandwidth of all links of a chip, '
    'without overlap with computation',
)


def to_json(plan: Plan) -> dict[str, Any]:
    """Returns the content of plan.json: bytes, seconds and operations as plain numbers."""
    return {
        'devices': plan.devices,
        'chip': dataclasses.asdict(plan.chip) if plan.chip else None,
        'mesh': dict(plan.mesh),
        'batch_size': plan.batch_size,
        'accumulate': plan.accumulate,
        'remat': plan.remat,
        'steps': plan.steps,
        'groups': plan.groups,
        'fits': plan.fits,
        'flops': {
            'matmul': plan.flops.matmul,
            'other': plan.flops.other,
            'model': plan.model_flops,
            'compiler': plan.compiled.flops * plan.size,
            'unknown_loops': plan.flops.unknown_loops,
        },
        'intensity': plan.intensity,
        'compiled': dataclasses.asdict(plan.compiled),
        'seconds': plan.seconds,
        **plan.outlook,
        'notes': list(NOTES) if plan.seconds else [],
    }


def to_text(plan: Plan) -> str:
    """Returns the text that `jaxtrain plan` prints."""
    return '\n'.join([_groups_text(plan), '', _lines(_facts(plan)), *_notes(plan)])


def _groups_text(plan: Plan) -> str:
    kinds = ('parameters', 'params', 'optimizer', 'ema', 'per_device')
    rows = [(group or '-', *map(row.get, kinds)) for group, row in plan.groups.items()]
    rows.append(('total', *(sum(row[k] for row in plan.groups.values()) for k in kinds)))
    columns = ('group', 'parameters', 'bytes', 'optimizer', 'average', 'bytes per device')
    return table(columns, rows)


def _facts(plan: Plan) -> dict[str, str]:
    """Label -> text, '-' if it is unknown."""
    compiled, seconds, outlook = plan.compiled, plan.seconds, plan.outlook
    mesh = ' '.join(f'{axis}={size}' for axis, size in plan.mesh.items())
    remat = f', remat {plan.remat}' if plan.remat else ''
    loops = ', loops of unknown length counted once' if plan.flops.unknown_loops else ''
    return {
        'devices': f'{plan.devices}, mesh {mesh}',
        'step': f'{plan.batch_size:,} examples in {plan.accumulate} part(s){remat}',
        'memory': _memory(plan),
        'operations': f'{quantity(plan.flops.matmul)}FLOP in products, '
        f'{quantity(plan.flops.other)}FLOP other, of the model {quantity(plan.model_flops)}FLOP'
        f'{loops}; the compiler counts {quantity(compiled.flops * plan.size)}FLOP, loops once',
        'intensity': '-' if compiled.overflow else f'{plan.intensity:.1f} FLOP per byte',
        'messages': ', '.join(
            f'{c["count"]:,} {kind} ({quantity(c["bytes"])}B)'
            for kind, c in compiled.collectives.items()
        )
        or '-',
        'seconds a step': _seconds(seconds) if seconds else '-',
        'MFU': f'{100 * outlook["mfu"]:.1f}%' if outlook else '-',
        'speed': _speed(outlook) if outlook else '-',
        f'{plan.steps:,} steps': _cost(outlook) if outlook else '-',
        'compiled in': f'{compiled.seconds:.1f} s',
    }


def _memory(plan: Plan) -> str:
    """Peak memory, and whether it fits."""
    peak = f'peak {quantity(plan.compiled.peak_bytes)}B per device'
    if plan.compiled.overflow:
        return f'does not fit: {plan.compiled.overflow}'
    if plan.chip is None:
        return peak
    fits = 'fits' if plan.fits else 'does not fit'
    return f'{fits}: {peak} of {quantity(plan.chip.hbm_bytes)}B'


def _seconds(seconds: Mapping[str, float]) -> str:
    names = [name for name in ('cycles', 'roofline') if name in seconds]
    parts = ', '.join(f'{name} {number(seconds[name])}' for name in ('flops', 'memory', 'messages'))
    return ', '.join(f'{name} {number(seconds[name])}' for name in names) + f' (of {parts})'


def _speed(outlook: Mapping[str, float]) -> str:
    tokens = outlook.get('tokens_per_second')
    examples = f'{quantity(outlook["examples_per_second"])}examples per second'
    return examples + (f', {quantity(tokens)}tokens' if tokens else '')


def _cost(outlook: Mapping[str, float]) -> str:
    hours = f'{number(outlook["hours"])} hours, {number(outlook["device_hours"])} device-hours'
    return hours + (f', cost {number(outlook["cost"])}' if 'cost' in outlook else '')


def _notes(plan: Plan) -> list[str]:
    return [f'({note})' for note in NOTES] if plan.seconds else []


def _lines(facts: Mapping[str, str]) -> str:
    width = max(map(len, facts))
    return '\n'.join(f'{name:<{width}}  {text}' for name, text in facts.items())


def quantity(value: float) -> str:
    """Formats a number with four significant digits and a prefix: 1234567 -> '1.235 M'."""
    power = 0
    while abs(value) >= 999.95 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f'{value:.4g} {PREFIXES[power]}'
