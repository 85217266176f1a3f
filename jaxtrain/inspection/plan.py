"""What a config would take: memory, operations, messages, time and money; nothing is trained.

The step is the one that `train` runs, traced and compiled for the devices at hand, or for a TPU
slice that is not there.
"""

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

# A sum over devices is a reduce-scatter and an all-gather.
SENT = {'all-reduce': 2}


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
