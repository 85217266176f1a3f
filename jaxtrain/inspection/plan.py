"""Plans: the memory, operations, communication, time and cost of a config, without training.

The step is the one that `train` runs, traced and compiled for the devices of this machine, or for a
TPU slice that is not attached.
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
from jaxtrain.errors import UserError
from jaxtrain.inspection.prepare import prepare
from jaxtrain.loop.job import Job
from jaxtrain.parallel.compile import trace_step
from jaxtrain.params.partition import flatten
from jaxtrain.params.sharding import nbytes_per_device, path_of

# Times that the bytes are sent: an all-reduce is a reduce-scatter and an all-gather.
SENT = {'all-reduce': 2}


@dataclass(frozen=True)
class Target:
    """The devices that a plan is for.

    Attributes:
      devices: the devices.
      slices: the number of slices that they form.
      name: their description for messages.
      price: price of a device-hour, in any currency; 0 if it is not given.
    """

    devices: Sequence[jax.Device]
    slices: int
    name: str
    price: float

    @property
    def chip(self) -> Chip | None:
        """Figures of a device; None if they are unknown."""
        return chip_of(self.devices[0])


@dataclass(frozen=True)
class Plan:
    """The plan of a config on some devices.

    Attributes:
      devices: description of the devices.
      chip: figures of a device; None if they are unknown.
      mesh: axis -> devices.
      batch_size, accumulate, remat: as configured; remat is '' for models without it.
      steps: length of the run.
      tokens: tokens per example; 0 for images.
      groups: group -> sizes, see `group_sizes`.
      flops: operations of a step over all devices, counted in its jaxpr.
      model_flops: operations of its matrix products and convolutions, without what is recomputed to
        save memory.
      compiled: measurements of the compiled step.
      price: price of a device-hour; 0 if it is not given.
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
        """Number of devices."""
        return math.prod(self.mesh.values())

    @property
    def fits(self) -> bool | None:
        """Whether it fits into memory; None if the size of the memory is unknown."""
        if self.compiled.overflow:
            return False
        return self.compiled.peak_bytes <= self.chip.hbm_bytes if self.chip else None

    @property
    def intensity(self) -> float:
        """Operations per byte of memory read or written; the compiler counts loops once in both."""
        return self.compiled.flops / max(self.compiled.bytes_accessed, 1.0)

    @property
    def bytes_accessed(self) -> float:
        """Bytes per device and step: the compiler's count, scaled up by the share of operations
        that it does not count because it counts the body of a loop once.
        """
        counted, once = self.flops.matmul / self.size, self.compiled.flops
        return self.compiled.bytes_accessed * max(1.0, counted / once if once else 1.0)

    @property
    def seconds(self) -> dict[str, float]:
        """Estimated seconds of a step, by kind; {} if the figures of the chip are unknown."""
        if not self.chip or self.compiled.overflow:
            return {}
        sent = {
            kind: c['bytes'] * SENT.get(kind, 1) for kind, c in self.compiled.collectives.items()
        }
        between = sent.pop(BETWEEN_SLICES, 0)
        times = {
            'flops': self.flops.matmul / self.size / self.chip.peak_bf16_flops,
            'memory': self.bytes_accessed / self.chip.hbm_bandwidth,
            'messages': sum(sent.values()) / self.chip.ici_bandwidth,
        }
        if between and self.chip.dcn_bandwidth:
            times['messages'] += between / self.chip.dcn_bandwidth
        times['roofline'] = max(times['flops'], times['memory']) + times['messages']
        if self.chip.clock and self.compiled.cycles:
            times['cycles'] = self.compiled.cycles / self.chip.clock + times['messages']
        times['step'] = times['cycles'] if 'cycles' in times else times['roofline']
        return times

    @property
    def outlook(self) -> dict[str, float]:
        """Figures derived from the seconds of a step; {} if these are unknown."""
        if not self.chip or not self.seconds:
            return {}
        step = self.seconds['step']
        hours = self.steps * step / 3600
        figures = {
            'mfu': self.model_flops / (step * self.size * self.chip.peak_bf16_flops),
            'examples_per_second': self.batch_size / step,
            'hours': hours,
            'device_hours': hours * self.size,
        }
        if self.tokens:
            figures['tokens_per_second'] = self.batch_size * self.tokens / step
        if self.price:
            figures['cost'] = self.price * figures['device_hours']
        return figures


def plan(cfg: Config, target: Target, say: Callable[[str], Any] = lambda text: None) -> Plan:
    """Plans a config.

    Args:
      cfg: the config.
      target: the devices.
      say: prints progress.

    Raises:
      UserError: anything that would prevent `train` from starting on these devices.
    """
    job = prepare(cfg, target.devices)
    for remark in job.remarks:
        say(remark)
    return of_job(job, target, say)


def find_target(topology: str = '', slices: int = 1, price: float = 0.0) -> Target:
    """Finds the devices to plan for.

    Args:
      topology: topology of a TPU slice, such as 'v5e:4x4'; '' for the devices of this machine.
      slices: number of slices.
      price: price of a device-hour, in any currency.

    Raises:
      UserError: an unknown topology, or a negative price.
    """
    if not topology and slices != 1:
        raise UserError(f'--slices={slices} are slices of a topology; name it with --topology')
    devices = absent_devices(topology, slices) if topology else jax.devices()
    if price < 0:
        raise UserError(f'--price={price} must not be negative')
    where = f'{slices} x {topology}' if slices > 1 else topology or 'here'
    return Target(devices, slices, f'{len(devices)} x {devices[0].device_kind} ({where})', price)


def of_job(job: Job, target: Target, say: Callable[[str], Any] = lambda text: None) -> Plan:
    """Plans a job that is laid out on the target's devices."""
    traced, remat = trace_step(*job.program()), getattr(job.learner.model, 'remat', '')
    counted = flops.of_jaxpr(traced.jaxpr)
    absent = set(jax.devices()).isdisjoint(job.layout.mesh.devices.flat)
    return Plan(
        devices=target.name,
        chip=target.chip,
        mesh=dict(job.layout.mesh.shape),
        batch_size=job.cfg.batch_size,
        accumulate=job.cfg.accumulate,
        remat=remat,
        steps=job.steps,
        tokens=job.train.tokens,
        groups=group_sizes(job),
        flops=counted,
        model_flops=counted.matmul if remat in ('', 'none') else job.model_flops(),
        compiled=aot.measure(traced.lower(), target.name, absent, say),
        price=target.price,
    )


def group_sizes(job: Job) -> dict[str, dict[str, int]]:
    """Maps each group to its sizes: the number of 'parameters'; the bytes of 'params', 'optimizer'
    and 'ema'; and 'per_device', the bytes of all three on a device.

    Values that belong to no parameter (BatchNorm statistics, counters) are in the group ''.
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
