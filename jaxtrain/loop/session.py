"""A session: what one start of a run carries while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtrain.checkpoints import checkpoint
from jaxtrain.pod.join import Pod
from jaxtrain.pod.watchdog import Watchdog
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.events import Timeline
from jaxtrain.runs.folder import RunDir
from jaxtrain.terminal import Terminal

if TYPE_CHECKING:
    from jaxtrain.checkpoints.manager import Manager


@dataclass(frozen=True)
class Session:
    """One start of a run.

    Attributes:
      folder: the run directory.
      clock: the seconds by phase, and `clock.step`, the number of finished optimizer steps.
      timeline: the events of the run.
      terminal: prints progress.
      pod: the processes that train together.
      manager: the manager of its checkpoints.
    """

    folder: RunDir
    clock: Clock
    timeline: Timeline
    terminal: Terminal
    pod: Pod
    manager: Manager

    def watchdog(self, budgets: Mapping[str, float]) -> Watchdog:
        """A watchdog with these limits by phase, in seconds; a context."""
        return Watchdog(budgets, self.pod.peers, self.folder.path, self.timeline)

    def say_failed(self, why: str) -> None:
        """Reports that saving the clock's step has failed, and is tried again."""
        self.timeline.add('failed', step=self.clock.step, why=why)
        self.terminal.say(f'{why}; trying again')

    def say_damaged(self, resumed: checkpoint.Resumed) -> None:
        """Reports the damaged checkpoints that were put aside before one could be resumed."""
        for step, why in resumed.damaged.items():
            self.timeline.add('damaged', step=step, why=why)
            self.terminal.say(
                f'the checkpoint of step {step} is damaged ({why}) and was put aside in '
                f'{checkpoint.DAMAGED}/{step}; that of step {resumed.step} is used'
            )
