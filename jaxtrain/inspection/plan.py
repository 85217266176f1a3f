"""What a config would take: memory, operations, messages, time and money; nothing is trained.

The step is the one that `train` runs, traced and compiled for the devices at hand, or for a TPU
slice that is not there.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxtrain.config import Config
from jaxtrain.costs import aot, flops
from jaxtrain.costs.chips import Chip, chip_of
from jaxtrain.costs.hlo import BETWEEN_SLICES
from jaxtrain.costs.topology import devices as absent_devices
from jaxtrain.data.sources.absent import absent_source, is_here
from jaxtrain.data.sources.open import Source, open_source
from jaxtrain.errors import UserError
from jaxtrain.loop.cadence import make_cadence
from jaxtrain.loop.job import Job, make_job
from jaxtrain.parallel.compile import trace_step
from jaxtrain.params.partition import flatten
from jaxtrain.params.sharding import nbytes_per_device, path_of
from jaxtrain.terminal import number, table

PREFIXES = ('', 'k', 'M', 'G', 'T', 'P', 'E')
# A sum over devices is a reduce-scatter and an all-gather.
SENT = {'all-reduce': 2}
NOTES = (
    'times are estimates that were never held against hardware; use them to compare. cycles: the '
    "compiler's own estimate of all but messages, at the clock at which the chip's matrix units "
    'make its published peak. roofline: operations over that peak, or bytes over the bandwidth of '
    'its memory (the compiler counts bytes that stay in caches too), whichever takes longer. '
    'Messages are added to both: their bytes over the bandwidth of all links of a chip, as if '
    'nothing ran beside them',
)


@dataclass(frozen=True)
class Plan:
    """A config on its devices.

    Attributes:
      devices: what it is for, in words.
      chip: figures of a device; None of those that have none.
      mesh: axis -> devices.
      batch_size, accumulate, remat: as configured; remat is '' for models without it.
      steps: length of the run.
      tokens: in an example; 0 for images.
      groups: group -> sizes, see `group_sizes`.
      flops: of a step over all devices, as its jaxpr has them.
      model_flops: its products of matrices and convolutions without what is computed anew to save
        memory.
      compiled: what the compiler says.
      price: of a device-hour; 0 if not given.
    """

    devices: str
    chip: Chip | None
    mesh: Mapping[str, int]
    batch_size: int
    accumulate: int
    remat: str
    steps: int
    tokens: int
    groups: Mapping[str, Mapping[str, int]]
    flops: flops.Flops
    model_flops: float
    compiled: aot.Measured
    price: float

    @property
    def size(self) -> int:
        """Devices in all."""
        return math.prod(self.mesh.values())

    @property
    def fits(self) -> bool | None:
        """Whether it fits into memory; None where its size is not known."""
        if self.compiled.overflow:
            return False
        return self.compiled.peak_bytes <= self.chip.hbm_bytes if self.chip else None

    @property
    def intensity(self) -> float:
        """Operations per byte of memory read or written; the compiler counts loops once in both."""
        return self.compiled.flops / max(self.compiled.bytes_accessed, 1.0)

    @property
    def bytes_accessed(self) -> float:
        """Per device and step: the compiler's count, more where it left out runs of loops, by as
        much as it left out operations.
        """
        counted, once = self.flops.matmul / self.size, self.compiled.flops
        return self.compiled.bytes_accessed * max(1.0, counted / once if once else 1.0)

    @property
    def seconds(self) -> dict[str, float]:
        """Of a step, by what is estimated; {} where there are no figures to estimate from."""
        if not self.chip or self.compiled.overflow:
            return {}
        sent = {
            kind: c['bytes'] * SENT.get(kind, 1) for kind, c in self.compiled.collectives.items()
        }
        between = sent.pop(BETWEEN_SLICES, 0)
        found = {
            'flops': self.flops.matmul / self.size / self.chip.peak_bf16_flops,
            'memory': self.bytes_accessed / self.chip.hbm_bandwidth,
            'messages': sum(sent.values()) / self.chip.ici_bandwidth,
        }
        if between and self.chip.dcn_bandwidth:
            found['messages'] += between / self.chip.dcn_bandwidth
        found['roofline'] = max(found['flops'], found['memory']) + found['messages']
        if self.chip.clock and self.compiled.cycles:
            found['cycles'] = self.compiled.cycles / self.chip.clock + found['messages']
        found['step'] = found['cycles'] if 'cycles' in found else found['roofline']
        return found

    @property
    def outlook(self) -> dict[str, float]:
        """What follows from the seconds of a step; {} where they are not known."""
        if not self.chip or not self.seconds:
            return {}
        step = self.seconds['step']
        hours = self.steps * step / 3600
        found = {
            'mfu': self.model_flops / (step * self.size * self.chip.peak_bf16_flops),
            'examples_per_second': self.batch_size / step,
            'hours': hours,
            'device_hours': hours * self.size,
        }
        if self.tokens:
            found['tokens_per_second'] = self.batch_size * self.tokens / step
        if self.price:
            found['cost'] = self.price * found['device_hours']
        return found


def plan(
    cfg: Config,
    topology: str = '',
    slices: int = 1,
    price: float = 0.0,
    say: Callable[[str], Any] = lambda text: None,
) -> Plan:
    """Plans a config.

    Args:
      cfg: the config.
      topology: of a TPU slice, such as 'v5e:4x4'; '' for the devices at hand.
      slices: how many of it.
      price: of a device-hour, in any currency.
      say: told what takes time.

    Raises:
      UserError: anything that would keep `train` from starting on these devices, a topology that
        is not known, or a negative price.
    """
    devices = find_devices(topology, slices)
    if price < 0:
        raise UserError(f'--price={price} must not be negative')
    return of_job(prepare(cfg, devices), named(devices, topology, slices), price, say)


def prepare(cfg: Config, devices: Sequence[jax.Device]) -> Job:
    """The job on these devices, after all checks that `train` makes before it compiles."""
    job = make_job(cfg, devices=devices, opens=open_or_absent)
    make_cadence(job.cfg, job, open_or_absent)
    # What is known of absent examples does not depend on how they are read.
    cfg.require_read(but=('compare.',) if is_here(cfg.data) else ('compare.', 'data.'))
    return job


def open_or_absent(data, *args: Any, **options: Any) -> Source:
    """`open_source`, or for a data set that is not here one without examples: none are needed, and
    planning downloads nothing.
    """
    return (open_source if is_here(data) else absent_source)(data, *args, **options)


def find_devices(topology: str, slices: int) -> list[jax.Device]:
    """The devices to plan for."""
    if topology:
        return absent_devices(topology, slices)
    if slices != 1:
        raise UserError(f'--slices={slices} are slices of a topology; name it with --topology')
    return jax.devices()


def named(devices: Sequence[jax.Device], topology: str, slices: int) -> str:
    """Devices in words."""
    where = f'{slices} x {topology}' if slices > 1 else topology or 'here'
    return f'{len(devices)} x {devices[0].device_kind} ({where})'


def of_job(
    job: Job, devices: str, price: float = 0.0, say: Callable[[str], Any] = lambda text: None
) -> Plan:
    """The plan of a job on its own mesh, which `devices` tells in words."""
    traced, remat = trace_step(*job.program()), getattr(job.learner.model, 'remat', '')
    counted = flops.of_jaxpr(traced.jaxpr)
    absent = set(jax.devices()).isdisjoint(job.layout.mesh.devices.flat)
    return Plan(
        devices=devices,
        chip=chip_of(job.layout.mesh.devices.flat[0]),
        mesh=dict(job.layout.mesh.shape),
        batch_size=job.cfg.batch_size,
        accumulate=job.cfg.accumulate,
        remat=remat,
        steps=job.steps,
        tokens=job.train.tokens,
        groups=group_sizes(job),
        flops=counted,
        model_flops=counted.matmul if remat in ('', 'none') else job.model_flops(),
        compiled=aot.measure(traced.lower(), devices, absent, say),
        price=price,
    )


def group_sizes(job: Job) -> dict[str, dict[str, int]]:
    """Group -> {'parameters': how many, 'params', 'optimizer', 'ema': bytes, 'per_device': bytes of
    all three that a device holds}.

    What belongs to no parameter (BatchNorm statistics, counters) is in the group ''.
    """
    state = job.abstract
    sizes: dict[str, dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(('parameters', 'params', 'optimizer', 'ema', 'per_device'), 0)
    )
    for path, leaf in flatten(state.params).items():
        sizes[job.learner.part.groups[path]]['parameters'] += math.prod(leaf.shape)
    parts = {'params': (state.params, state.model_state), 'optimizer': state.opt_state}
    for name, tree in {**parts, 'ema': state.ema}.items():
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            row = sizes[job.learner.part.groups.get(path_of(keys), '')]
            row[name] += math.prod(leaf.shape) * leaf.dtype.itemsize
            row['per_device'] += nbytes_per_device(leaf)
    return {group: dict(sizes[group]) for group in sorted(sizes, key=lambda g: (not g, g))}


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
