"""Looks for the way to run a config on given devices that the estimates say is the fastest.

Only what leaves the training as it is may vary: how a step's examples are taken in parts, what is
computed anew to save memory, and how the state lies on the devices. The batch stays what it is;
another one is another experiment.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxtrain.chips import Chip
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.job import make_job
from jaxtrain.plan import (
    Plan,
    find_devices,
    group_sizes,
    named,
    of_job,
    open_or_absent,
    prepare,
    quantity,
)
from jaxtrain.terminal import number, table

COMPILES = 12
# How far beyond the memory a guess has to be for the compiler not to be asked.
MARGIN = 1.2
FSDP = (1, 4, 16)
# (remat, accumulate), what costs least first: the first that fits is the one to take.
SAVINGS = (
    ('none', 1), ('dots', 1), ('none', 2), ('full', 1),
    ('none', 4), ('full', 2), ('full', 4), ('full', 8),
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One way to run it.

    Attributes:
      changes: flag -> value, where they differ from the config.
      plan: None if it cannot be run.
      reason: why not, else ''.
      state_too_large: whether parameters and optimizer alone do not fit.
    """

    changes: dict[str, Any]
    plan: Plan | None
    reason: str = ''
    state_too_large: bool = False

    @property
    def fits(self) -> bool:
        return bool(self.plan and self.plan.fits)

    @property
    def mesh(self) -> dict[str, Any]:
        """The changes to the mesh."""
        return {key: value for key, value in self.changes.items() if key.startswith('mesh.')}


@dataclass(frozen=True)
class Suggestion:
    """What was tried.

    Attributes:
      trials: in the order in which they were tried; the first one is the config as it is.
      best: the fastest one that fits; None if none does.
    """

    trials: list[Trial]
    best: Trial | None

    @property
    def flags(self) -> str:
        """What to add to the command line; '' for the config as it is, or if nothing fits."""
        changes = self.best.changes if self.best else {}
        return ' '.join(f'--config.{key}={value}' for key, value in changes.items())


def suggest(
    cfg: Config,
    topology: str = '',
    slices: int = 1,
    price: float = 0.0,
    say: Callable[[str], Any] = lambda text: None,
) -> Suggestion:
    """Tries at most `COMPILES` ways to run a config; arguments as of `plan.plan`.

    Raises:
      UserError: as `plan.plan` does, or devices of which no figures are known.
    """
    devices = find_devices(topology, slices)
    where = named(devices, topology, slices)
    say('plans it as it is')
    first = Trial({}, of_job(prepare(cfg, devices), where, price, say))
    if first.plan.chip is None:
        raise UserError(
            f'--suggest compares estimated times, and of {devices[0].device_kind} no figures are '
            'known; name a TPU slice with --topology, such as v5e:4x4'
        )
    trials = {_words({}): first}
    for changes in _worth_trying(cfg, len(devices) // slices, trials):
        if _compiled(trials) == COMPILES:
            break
        say(f'plans {_words(changes)}')
        trials[_words(changes)] = _attempt(
            cfg, changes, devices, first.plan.chip, where, price, say
        )
    fitting = [t for t in trials.values() if t.fits]
    best = min(fitting, key=lambda t: t.plan.seconds['step'], default=None)
    return Suggestion(list(trials.values()), best)


def _compiled(trials: Mapping[str, Trial]) -> int:
    return sum(trial.plan is not None for trial in trials.values())


def _attempt(
    cfg: Config,
    changes: dict[str, Any],
    devices: Sequence[jax.Device],
    chip: Chip,
    where: str,
    price: float,
    say: Callable[[str], Any],
) -> Trial:
    try:
        job = make_job(changed(cfg, changes), devices=devices, opens=open_or_absent)
    except UserError as error:
        return Trial(changes, None, str(error))
    held = sum(row['per_device'] for row in group_sizes(job).values())
    if held > chip.hbm_bytes:
        return Trial(changes, None, f'parameters and optimizer alone take {quantity(held)}B', True)
    return Trial(changes, of_job(job, where, price, say))


def changed(cfg: Config, changes: dict[str, Any]) -> Config:
    """The config with other values, by key, such as 'mesh.fsdp'."""
    for key, value in changes.items():
        section, _, name = key.rpartition('.')
        cfg = cfg.updated(**{section: {name: value}}) if section else cfg.replace(**{name: value})
    return cfg


def _worth_trying(
    cfg: Config, devices: int, trials: Mapping[str, Trial]
) -> Iterator[dict[str, Any]]:
    """Changes to the config in the order to try them, on slices of so many devices.

    Reads of `trials`, by their words, how the ones before went: on a mesh on which one fits,
    nothing that saves more memory is tried, since it only takes longer.
    """
    remat = trials[_words({})].plan.remat
    meshes = list(_meshes(cfg, devices))
    for saving, accumulate in SAVINGS:
        if saving != 'none' and not remat:
            continue
        own = {'model.remat': saving} if remat and saving != remat else {}
        own |= {'accumulate': accumulate} if accumulate != cfg.accumulate else {}
        for mesh in list(meshes):
            changes = {**mesh, **own}
            if _words(changes) not in trials:
                if _too_large(mesh, saving, accumulate, trials):
                    continue
                yield changes
            if _words(changes) in trials and trials[_words(changes)].fits:
                meshes.remove(mesh)


def _meshes(cfg: Config, devices: int) -> Iterator[dict[str, Any]]:
    """Changes to the mesh: first none, then other sizes of fsdp."""
    yield {}
    for fsdp in FSDP:
        if fsdp != cfg.mesh.fsdp and devices % (fsdp * max(1, cfg.mesh.tensor)) == 0:
            yield {'mesh.fsdp': fsdp, **({'mesh.data': -1} if cfg.mesh.data != -1 else {})}


def _too_large(
    mesh: dict[str, Any], saving: str, accumulate: int, trials: Mapping[str, Trial]
) -> bool:
    """Whether a trial with fewer parts tells that this one does not fit: of the memory that is not
    the state, as many parts take as small a part.
    """
    same = [trial for trial in trials.values() if trial.mesh == mesh]
    if any(trial.state_too_large for trial in same):
        return True
    plans = (trial.plan for trial in same if trial.plan and trial.plan.remat in ('', saving))
    return any(
        plan.accumulate < accumulate and _peak(plan, accumulate) > MARGIN * plan.chip.hbm_bytes
        for plan in plans
    )


def _peak(plan: Plan, accumulate: int) -> float:
    """A guess at the memory of a plan with another number of parts."""
    state = sum(row['per_device'] for row in plan.groups.values())
    return state + (plan.compiled.peak_bytes - state) * plan.accumulate / accumulate


def to_text(found: Suggestion) -> str:
    """The table of what was tried, the best at the end, as flags."""
    columns = ('tried', 'fits', 'peak bytes', 'seconds a step', 'MFU')
    rows = [(_words(t.changes), *_cells(t)) for t in found.trials]
    if found.best is None:
        last = 'none of them fits: take more devices, or a smaller batch'
    elif not found.flags:
        last = 'the config as it is is the fastest of these'
    else:
        last = f'fastest: {found.flags}'
    return f'{table(columns, rows)}\n{last}'


def to_json(found: Suggestion) -> dict[str, Any]:
    """For plan.json: {'tried': [...], 'flags': ...}."""
    tried = [
        {
            'changes': t.changes,
            'reason': t.reason,
            'fits': t.plan.fits if t.plan else None,
            'peak_bytes': t.plan.compiled.peak_bytes if t.plan else None,
            'seconds': t.plan.seconds.get('step') if t.plan else None,
        }
        for t in found.trials
    ]
    return {'tried': tried, 'flags': found.flags}


def _cells(trial: Trial) -> tuple[str, ...]:
    if trial.plan is None:
        return ('cannot be run', '-', '-', '-')
    peak = quantity(trial.plan.compiled.peak_bytes)
    if not trial.plan.fits:
        return ('no', peak, '-', '-')
    step, mfu = trial.plan.seconds['step'], trial.plan.outlook['mfu']
    return ('yes', peak, number(step), f'{100 * mfu:.1f}%')


def _words(changes: dict[str, Any]) -> str:
    return ' '.join(f'{key}={value}' for key, value in changes.items()) or 'as it is'
