"""The cadence: what is due after which step, and on which data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.config import Config
from jaxtrain.data.pipeline import Reading, check_batch_size
from jaxtrain.data.sources.open import Source, open_source
from jaxtrain.errors import UserError
from jaxtrain.loop.job import Job
from jaxtrain.loop.profiling import check_profile
from jaxtrain.parallel.mesh import batch_shares
from jaxtrain.runs.metric import Metric
from jaxtrain.tasks.tasks import best_metric


@dataclass(frozen=True)
class Calls(Sequence[int]):
    """The steps after which calls of the compiled program begin, and with which the last one ends.

    They are computed when they are needed, since a run may have hundreds of millions.

    Attributes:
      first: number of finished steps before the first call.
      stops: ascending steps with which a call must end, int64.
      several: steps of a call; calls of one step make up the rest before each stop.
    """

    first: int
    stops: np.ndarray
    several: int

    def __len__(self) -> int:
        return int(self._before[-1]) + 1

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        if not number:
            return self.first
        part = int(np.searchsorted(self._before, number, side='left')) - 1
        whole = int(self._lengths[part]) // self.several
        number -= int(self._before[part])
        begin = int(self.stops[part - 1]) if part else self.first
        return begin + number + (self.several - 1) * min(number, whole)

    @property
    def counts(self) -> list[int]:
        """The different numbers of steps of a call; [1] if no call is left."""
        whole, rest = np.divmod(self._lengths, self.several)
        several = {self.several} if whole.any() else set()
        return sorted(several | ({1} if rest.any() else set())) or [1]

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        return np.diff(self.stops, prepend=self.first)

    @functools.cached_property
    def _before(self) -> np.ndarray:
        """The number of calls before each stop's own, and of all."""
        whole, rest = np.divmod(self._lengths, self.several)
        return np.cumsum(np.append(0, whole + rest))


@dataclass(frozen=True)
class Cadence:
    """The loop's settings. What is due depends on the step alone, so that a run that resumes does
    the same as one that was not interrupted.

    Attributes:
      steps: length of the run.
      unit: examples in the unit of log_every, eval_every and save_every: a step or an epoch.
      log_every, eval_every, save_every: in units; 0 means only at the end.
      steps_per_call: steps in one call of the compiled program, unless something is due earlier.
      profile: first and last step to trace.
      best_metric: the val metric that decides which checkpoint is the best.
      budgets: seconds by phase, without phases that have no limit.
      reading: how training batches are read.
      val, test: sources to evaluate on, or None.
    """

    steps: int
    batch_size: int
    eval_batch_size: int
    unit: int
    log_every: int
    eval_every: int
    save_every: int
    steps_per_call: int
    profile: tuple[int, int] | None
    budgets: Mapping[str, float]
    keep: int
    best_metric: Metric
    reading: Reading
    val: Source | None
    test: Source | None

    def logs(self, step: int) -> bool:
        return self._due(step, self.log_every)

    def evaluates(self, step: int) -> bool:
        return step == self.steps or self._due(step, self.eval_every)

    def validates(self, step: int) -> bool:
        return self.val is not None and self.evaluates(step)

    def saves(self, step: int) -> bool:
        return step == self.steps or self._due(step, self.save_every)

    def calls(self, first: int) -> Calls:
        """The calls of the compiled program after `first` steps.

        A call takes `steps_per_call` steps, or a single one if something but the log is due before
        that many are done. So at most two programs are compiled.
        """
        every = (self.eval_every, self.save_every) if self.steps_per_call > 1 else ()
        stops = np.unique(np.concatenate([*map(self._all_due, every), [self.steps]]))
        return Calls(first, stops[stops > first], self.steps_per_call)

    def stops(self, step: int) -> bool:
        """Whether something but the log is due after this step, so that a call must end with it."""
        return self.evaluates(step) or self.saves(step)

    def _due(self, step: int, every: int) -> bool:
        """Whether this step completes another `every` units; an epoch may end within a step."""
        period, seen = every * self.unit, step * self.batch_size
        return bool(every) and seen // period > (seen - self.batch_size) // period

    def _all_due(self, every: int) -> np.ndarray:
        """The steps for which `_due` holds, ascending, int64; a long run has many."""
        period = every * self.unit
        seen = np.arange(1, self.steps * self.batch_size // period + 1 if period else 1) * period
        return -(-seen // self.batch_size)


def make_cadence(cfg: Config, job: Job, opens: Callable[..., Source] = open_source) -> Cadence:
    """Reads and checks the config keys of the loop.

    Args:
      cfg: the config.
      job: the job, for the length of the run and the batch shards.
      opens: opens the data to evaluate on.

    Raises:
      UserError: a key that is out of range, or a split that cannot be opened.
    """
    least = {
        'log_every': 1, 'eval_every': 0, 'save_every': 0, 'eval_batch_size': 0, 'keep': 1,
        'steps_per_call': 1,
    }  # fmt: skip
    for name, minimum in least.items():
        if getattr(cfg, name) < minimum:
            raise UserError(f'config.{name}={getattr(cfg, name)} must be at least {minimum}')
    if cfg.data.workers < 0:
        raise UserError(f'config.data.workers={cfg.data.workers} must be at least 0 (threads)')
    eval_batch_size = cfg.eval_batch_size or cfg.batch_size
    check_batch_size('eval_batch_size', eval_batch_size, batch_shares(job.layout.mesh))
    units = {'steps': cfg.batch_size, 'epochs': len(job.train)}
    data = cfg.data
    val, test = (
        opens(data, split, f'config.data.{name}', classes=job.train.classes) if split else None
        for name, split in (('val', data.val), ('test', data.test))
    )
    return Cadence(
        steps=job.steps,
        batch_size=cfg.batch_size,
        eval_batch_size=eval_batch_size,
        unit=units[cfg.choose('every', units)],
        log_every=cfg.log_every,
        eval_every=cfg.eval_every,
        save_every=cfg.save_every,
        steps_per_call=cfg.steps_per_call,
        profile=check_profile(cfg.profile, job.steps),
        budgets=_budgets(cfg),
        keep=cfg.keep,
        best_metric=best_metric(cfg),
        reading=Reading(data.threads, data.prefetch, data.workers),
        val=val,
        test=test,
    )


def _budgets(cfg: Config) -> dict[str, float]:
    """The limit of each phase of the clock, in seconds, without those of 0 (no limit)."""
    budgets = {name: getattr(cfg.budgets, name) for name in ('restore', 'compile', 'eval', 'save')}
    for name, seconds in (('step', cfg.budgets.step), *budgets.items()):
        if seconds < 0:
            raise UserError(f'config.budgets.{name}={seconds} must be at least 0 (no limit)')
    budgets |= {'train': cfg.budgets.step, 'data_wait': cfg.budgets.step}
    return {name: seconds for name, seconds in budgets.items() if seconds}
