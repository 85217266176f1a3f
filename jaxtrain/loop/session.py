"""What a run carries with it while it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtrain.checkpoints import checkpoint
from jaxtrain.pod.join import Pod
from jaxtrain.pod.watchdog import Watchdog
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.events import Timeline
from jaxtrain.runs.run import RunDir
from jaxtrain.terminal import Terminal

if TYPE_CHECKING:
    from jaxtrain.checkpoints.manager import Manager


@dataclass(frozen=True)
class Session:
    """One start of a run.

    Attributes:
      folder: the run directory.
      clock: the seconds by phase, and `clock.step`, how many optimizer steps are done.
      timeline: the events of the run.
      terminal: where it says what happens.
      pod: the processes that train together.
      manager: of its checkpoints.
    """

    folder: RunDir
    clock: Clock
    timeline: Timeline
    terminal: Terminal
    pod: Pod
    manager: Manager

    def watchdog(self, budgets: Mapping[str, float]) -> Watchdog:
        """A watchdog with these seconds by phase; a context."""
        peers, workdir = self.pod.peers, self.folder.path
        return Watchdog(budgets, self.clock.position, peers, workdir, self.timeline)

    def say_failed(self, why: str) -> None:
        """A checkpoint of the clock's step could not be written, and is tried again."""
        self.timeline.add('failed', step=self.clock.step, why=why)
        self.terminal.say(f'{why}; trying again')

    def say_damaged(self, resumed: checkpoint.Resumed) -> None:
        """Some checkpoints were put aside on the way to one that is sound."""
        for step, why in resumed.damaged.items():
            self.timeline.add('damaged', step=step, why=why)
            self.terminal.say(
                f'the checkpoint of step {step} is damaged ({why}) and was put aside in '
                f'{checkpoint.DAMAGED}/{step}; that of step {resumed.step} is used'
            )
