"""A plan as text and as JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtrain.inspection.plan import Plan
from jaxtrain.terminal import number, table

PREFIXES = ('', 'k', 'M', 'G', 'T', 'P', 'E')
NOTES = (
    'times are estimates that were never held against hardware; use them to compare. cycles: the '
    "compiler's own estimate of all but messages, at the clock at which the chip's matrix units "
    'make its published peak. roofline: operations over that peak, or bytes over the bandwidth of '
    'its memory (the compiler counts bytes that stay in caches too), whichever takes longer. '
    'Messages are added to both: their bytes over the bandwidth of all links of a chip, as if '
    'nothing ran beside them',
)


def to_json(found: Plan) -> dict[str, Any]:
    """The content of plan.json: bytes, seconds and operations as plain numbers."""
    return {
        'devices': found.devices,
        'chip': dataclasses.asdict(found.chip) if found.chip else None,
        'mesh': dict(found.mesh),
        'batch_size': found.batch_size,
        'accumulate': found.accumulate,
        'remat': found.remat,
        'steps': found.steps,
        'groups': found.groups,
        'fits': found.fits,
        'flops': {
            'matmul': found.flops.matmul,
            'other': found.flops.other,
            'model': found.model_flops,
            'compiler': found.compiled.flops * found.size,
            'unknown_loops': found.flops.unknown_loops,
        },
        'intensity': found.intensity,
        'compiled': dataclasses.asdict(found.compiled),
        'seconds': found.seconds,
        **found.outlook,
        'notes': list(NOTES) if found.seconds else [],
    }


def to_text(found: Plan) -> str:
    """What `jaxtrain plan` prints."""
    return '\n'.join([_groups_text(found), '', _lines(_facts(found)), *_notes(found)])


def _groups_text(found: Plan) -> str:
    kinds = ('parameters', 'params', 'optimizer', 'ema', 'per_device')
    rows = [(group or '-', *map(row.get, kinds)) for group, row in found.groups.items()]
    rows.append(('in all', *(sum(row[k] for row in found.groups.values()) for k in kinds)))
    columns = ('group', 'parameters', 'bytes', 'optimizer', 'average', 'bytes per device')
    return table(columns, rows)


def _facts(found: Plan) -> dict[str, str]:
    """Label -> what there is to say, '-' where nothing is known."""
    compiled, seconds, outlook = found.compiled, found.seconds, found.outlook
    mesh = ' '.join(f'{axis}={size}' for axis, size in found.mesh.items())
    remat = f', remat {found.remat}' if found.remat else ''
    loops = ', loops of unknown length counted once' if found.flops.unknown_loops else ''
    return {
        'devices': f'{found.devices}, mesh {mesh}',
        'step': f'{found.batch_size:,} examples in {found.accumulate} part(s){remat}',
        'memory': _memory(found),
        'operations': f'{quantity(found.flops.matmul)}FLOP in products, '
        f'{quantity(found.flops.other)}FLOP other, of the model {quantity(found.model_flops)}FLOP'
        f'{loops}; the compiler counts {quantity(compiled.flops * found.size)}FLOP, loops once',
        'intensity': '-' if compiled.overflow else f'{found.intensity:.1f} FLOP per byte',
        'messages': ', '.join(
            f'{c["count"]:,} {kind} ({quantity(c["bytes"])}B)'
            for kind, c in compiled.collectives.items()
        )
        or '-',
        'seconds a step': _seconds(seconds) if seconds else '-',
        'MFU': f'{100 * outlook["mfu"]:.1f}%' if outlook else '-',
        'speed': _speed(outlook) if outlook else '-',
        f'{found.steps:,} steps': _cost(outlook) if outlook else '-',
        'compiled in': f'{compiled.seconds:.1f} s',
    }


def _memory(found: Plan) -> str:
    """The peak against what there is."""
    said = f'peak {quantity(found.compiled.peak_bytes)}B per device'
    if found.compiled.overflow:
        return f'does not fit: {found.compiled.overflow}'
    if found.chip is None:
        return said
    fits = 'fits' if found.fits else 'does not fit'
    return f'{fits}: {said} of {quantity(found.chip.hbm_bytes)}B'


def _seconds(seconds: Mapping[str, float]) -> str:
    names = [name for name in ('cycles', 'roofline') if name in seconds]
    parts = ', '.join(f'{name} {number(seconds[name])}' for name in ('flops', 'memory', 'messages'))
    return ', '.join(f'{name} {number(seconds[name])}' for name in names) + f' (of {parts})'


def _speed(outlook: Mapping[str, float]) -> str:
    tokens = outlook.get('tokens_per_second')
    said = f'{quantity(outlook["examples_per_second"])}examples per second'
    return said + (f', {quantity(tokens)}tokens' if tokens else '')


def _cost(outlook: Mapping[str, float]) -> str:
    said = f'{number(outlook["hours"])} hours, {number(outlook["device_hours"])} device-hours'
    return said + (f', cost {number(outlook["cost"])}' if 'cost' in outlook else '')


def _notes(found: Plan) -> list[str]:
    return [f'({note})' for note in NOTES] if found.seconds else []


def _lines(facts: Mapping[str, str]) -> str:
    width = max(map(len, facts))
    return '\n'.join(f'{name:<{width}}  {said}' for name, said in facts.items())


def quantity(value: float) -> str:
    """Four significant digits and a prefix: 1234567 -> '1.235 M'."""
    power = 0
    while abs(value) >= 999.95 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f'{value:.4g} {PREFIXES[power]}'
