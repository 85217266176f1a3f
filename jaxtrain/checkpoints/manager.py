"""Orbax's checkpoint manager, adapted to a run. Importing this module imports Orbax."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers


@dataclass(frozen=True)
class KeepLatestAndBest(checkpoint_managers.PreservationPolicy):
    """Policy that keeps the `latest` newest checkpoints, and the one that `best` returns.

    Orbax applies the policy whenever a new checkpoint is complete, before it removes any.
    """

    latest: int
    best: Callable[[Sequence[int]], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [c.step for c in checkpoints]
        kept = kept_steps(steps, self.latest, self.best)
        return [step in kept for step in steps]


def kept_steps(
    steps: Sequence[int], latest: int, best: Callable[[Sequence[int]], int | None]
) -> set:
    """Return the `latest` newest of some steps, and the best one."""
    return {*steps[-max(latest, 1) :], best(steps)}


class Manager(ocp.CheckpointManager):
    """Orbax's manager, whose context re-raises the first error if a pending save fails too."""

    def __exit__(self, kind, error, trace) -> bool | None:
        try:
            return super().__exit__(kind, error, trace)
        except Exception:
            if error is None:
                raise
            return False
