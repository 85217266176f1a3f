"""Suggestions: a search for the settings that run a config fastest on given devices, by estimates.

The search first varies only what does not change the training: accumulation, remat, and the
sharding of the state. Then it varies the batch size, for the same number of examples in total; this
is another experiment, and is reported separately.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.inspection.plan import Plan, Target, group_sizes, of_job
from jaxtrain.inspection.plan_text import quantity
from jaxtrain.inspection.prepare import open_or_absent, prepare
from jaxtrain.loop.job import make_job

COMPILES = 12
# A trial is not compiled if its estimated memory exceeds the device's by this factor.
MARGIN = 1.2
FSDP = (1, 4, 16)
# (remat, accumulate), the cheapest first: the first that fits is the best.
SAVINGS = (
    ('none', 1), ('dots', 1), ('none', 2), ('full', 1),
    ('none', 4), ('full', 2), ('full', 4), ('full', 8),
)  # fmt: skip
# Other batches: larger by these factors, as long as each is faster than the previous one by GAIN;
# or smaller by these factors, until one fits.
LARGER, GAIN = (2, 4, 8), 1.01
SMALLER = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Trial:
    """A config with some changes, and its plan.

    Attributes:
      changes: key -> value, for keys that differ from the config.
      plan: the plan; None if it cannot run.
      reason: why it cannot run, else ''.
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
    def speed(self) -> float:
        """Examples per second; 0 if it does not fit."""
        return self.plan.outlook['examples_per_second'] if self.plan and self.fits else 0.0

    @property
    def mesh(self) -> dict[str, Any]:
        """The changes to the mesh."""
        return {key: value for key, value in self.changes.items() if key.startswith('mesh.')}

    @property
    def flags(self) -> str:
        """The flags to add to the command line; '' for the unchanged config."""
        return ' '.join(f'--config.{key}={value}' for key, value in self.changes.items())


@dataclass(frozen=True)
class Suggestion:
    """The result of a search.

    Attributes:
      trials: all trials in order; the first one is the unchanged config.
      best: the fastest trial that fits with the config's batch; None if no trial does.
      other: the fastest trial with another batch; None if it is not faster than `best`.
    """

    trials: list[Trial]
    best: Trial | None
    other: Trial | None


def suggest(
    cfg: Config, target: Target, say: Callable[[str], Any] = lambda text: None
) -> Suggestion:
    """Compiles at most `COMPILES` trials with the config's batch, and some with other batches.

    The arguments are those of `plan.plan`.

    Raises:
      UserError: as in `plan.plan`, or devices whose figures are unknown.
    """
    say('plans the unchanged config')
    first = Trial({}, of_job(prepare(cfg, target.devices), target, say))
    if target.chip is None:
        raise UserError(
            '--suggest compares estimated times, and no figures are known for '
            f'{target.devices[0].device_kind}; name a TPU slice with --topology, such as v5e:4x4'
        )
    trials = {words({}): first}

    def attempt(changes: dict[str, Any]) -> Trial:
        say(f'plans {words(changes)}')
        trial = _attempt(cfg, changes, target, say)
        trials[words(changes)] = trial
        return trial

    for changes in _worth_trying(cfg, len(target.devices) // target.slices, trials):
        if _compiled(trials) == COMPILES:
            break
        attempt(changes)
    best = _fastest(trials.values())
    others = _other_batches(cfg, dict(trials), best, attempt)
    other = _fastest([t for t in others if not best or t.speed > GAIN * best.speed])
    return Suggestion(list(trials.values()), best, other)


def _fastest(trials: Iterable[Trial]) -> Trial | None:
    return max((t for t in trials if t.fits), key=lambda t: t.speed, default=None)


def _compiled(trials: Mapping[str, Trial]) -> int:
    return sum(trial.plan is not None for trial in trials.values())


def _attempt(
    cfg: Config, changes: dict[str, Any], target: Target, say: Callable[[str], Any]
) -> Trial:
    assert target.chip is not None  # `suggest` rejects devices whose figures are unknown
    try:
        job = make_job(changed(cfg, changes), devices=target.devices, opens=open_or_absent)
        held = _held(group_sizes(job))
        if held > target.chip.hbm_bytes:
            why = f'parameters and optimizer alone take {quantity(held)}B'
            return Trial(changes, None, why, state_too_large=True)
        return Trial(changes, of_job(job, target, say))
    except UserError as error:
        return Trial(changes, None, str(error))


def changed(cfg: Config, changes: dict[str, Any]) -> Config:
    """Returns the config with other values, by key, such as 'mesh.fsdp'."""
    for key, value in changes.items():
        section, _, name = key.rpartition('.')
        cfg = cfg.updated(**{section: {name: value}}) if section else cfg.replace(**{name: value})
    return cfg


def _worth_trying(
    cfg: Config, devices: int, trials: Mapping[str, Trial]
) -> Iterator[dict[str, Any]]:
    """Yields changes to the config in the order to try them, on slices of this many devices.

    The results of earlier trials are read from `trials`, which the caller extends: once a trial
    fits on a mesh, no changes that save more memory are tried on it, since they would be slower.
    """
    remat = _remat(trials)
    meshes = list(_meshes(cfg, devices))
    for saving, accumulate in SAVINGS:
        if saving != 'none' and not remat:
            continue
        memory: dict[str, Any] = {'model.remat': saving} if remat and saving != remat else {}
        memory |= {'accumulate': accumulate} if accumulate != cfg.accumulate else {}
        for mesh in list(meshes):
            changes = {**mesh, **memory}
            if words(changes) not in trials:
                if _too_large(mesh, saving, accumulate, trials):
                    continue
                yield changes
            if words(changes) in trials and trials[words(changes)].fits:
                meshes.remove(mesh)


def _other_batches(
    cfg: Config,
    trials: Mapping[str, Trial],
    best: Trial | None,
    attempt: Callable[[dict[str, Any]], Trial],
) -> list[Trial]:
    """Tries larger batches, with the changes that are best for the config's batch; and smaller ones
    if the config's batch has to save memory, which they may not need to, or does not fit.

    Args:
      cfg: the config.
      trials, best: the trials with the config's batch, and the best of them.
      attempt: makes a trial of changes.
    """
    tried: list[Trial] = []
    remat = _remat(trials)
    if best and best.plan:
        before = best
        for factor in LARGER:
            tried.append(attempt(best.changes | _batch(cfg, cfg.batch_size * factor)))
            if tried[-1].speed < GAIN * before.speed:
                break
            before = tried[-1]
        if best.plan.remat in ('', 'none') and best.plan.accumulate == 1:
            return tried
        mesh, saving = best.mesh, 'none'
    else:
        planned = [
            (t.plan.compiled.peak_bytes, t.mesh)
            for t in trials.values()
            if t.plan and _held(t.plan.groups) < _room(t.plan)
        ]
        if not planned:
            return tried
        _, mesh = min(planned, key=lambda trial: trial[0])
        saving = 'full'
    changes = {**mesh, **({'model.remat': saving} if remat not in ('', saving) else {})}
    changes |= {'accumulate': 1} if cfg.accumulate != 1 else {}
    for factor in SMALLER:
        if cfg.batch_size % factor:
            break
        # It takes as much memory as the config's batch in `factor` parts.
        if _too_large(mesh, saving, factor, trials):
            continue
        tried.append(attempt(changes | _batch(cfg, cfg.batch_size // factor)))
        if tried[-1].fits:
            break
    return tried


def _batch(cfg: Config, size: int) -> dict[str, Any]:
    """The changes for another batch size and the same number of examples in total."""
    steps = {'steps': math.ceil(cfg.steps * cfg.batch_size / size)} if cfg.steps else {}
    return {'batch_size': size, **steps}


def _meshes(cfg: Config, devices: int) -> Iterator[dict[str, Any]]:
    """Yields changes to the mesh: first no change, then other sizes of fsdp."""
    yield {}
    for fsdp in FSDP:
        if fsdp != cfg.mesh.fsdp and devices % (fsdp * max(1, cfg.mesh.tensor)) == 0:
            yield {'mesh.fsdp': fsdp, **({'mesh.data': -1} if cfg.mesh.data != -1 else {})}


def _too_large(
    mesh: dict[str, Any], saving: str, accumulate: int, trials: Mapping[str, Trial]
) -> bool:
    """Whether trials with fewer parts show that this one does not fit. The memory besides the state
    is assumed to be inversely proportional to the number of parts.
    """
    same = [trial for trial in trials.values() if trial.mesh == mesh]
    if any(trial.state_too_large for trial in same):
        return True
    plans = (trial.plan for trial in same if trial.plan and trial.plan.remat in ('', saving))
    return any(
        plan.accumulate < accumulate and _peak(plan, accumulate) > MARGIN * _room(plan)
        for plan in plans
    )


def _remat(trials: Mapping[str, Trial]) -> str:
    plan = trials[words({})].plan
    assert plan is not None  # `suggest` plans the unchanged config first
    return plan.remat


def _room(plan: Plan) -> float:
    """Bytes of a device's memory."""
    assert plan.chip is not None  # `suggest` rejects devices whose figures are unknown
    return plan.chip.hbm_bytes


def _peak(plan: Plan, accumulate: int) -> float:
    """Estimates the memory of a plan with another number of parts."""
    state = _held(plan.groups)
    return state + (plan.compiled.peak_bytes - state) * plan.accumulate / accumulate


def _held(groups: Mapping[str, Mapping[str, int]]) -> int:
    """Bytes of parameters and optimizer on a device."""
    return sum(row['per_device'] for row in groups.values())


def words(changes: dict[str, Any]) -> str:
    return ' '.join(f'{key}={value}' for key, value in changes.items()) or 'unchanged'
