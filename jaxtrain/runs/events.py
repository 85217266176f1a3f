"""The timeline of a run, over all its starts: events.jsonl, one JSON object a line.

| event   | when                                         | with                               |
|---------|----------------------------------------------|------------------------------------|
| start   | the run begins or goes on                    | steps, processes, devices, host,   |
|         |                                              | pid, git                           |
| begin   | one of the phases below begins               | phase                              |
| init    | config, data and model are checked           | seconds                            |
| restore | the state was read, or made                  | seconds                            |
| lost    | steps done before were not in the checkpoint | steps                              |
| damaged | a checkpoint could not be used               | why                                |
| compile | the programs are there                       | seconds                            |
| train   | steps were logged (every 10 s at most)       |                                    |
| alive   | nothing else was said for a minute           | phase, seconds                     |
| eval    | a split was evaluated                        | seconds                            |
| save    | a checkpoint was begun                       | seconds that training waited       |
| failed  | a checkpoint could not be written            | why                                |
| hang    | nothing moved for longer than allowed        | why                                |
| exit    | the process ends                             | code, why                          |

Each has `event`, `time` (seconds since 1970), `start` (0 for the first) and `step`, the last done.
A start without an exit was killed. Process 0 writes, and does not wait for the disk: a line may be
lost where the machine is.
"""

import os
import socket
import threading
import time
from contextlib import AbstractContextManager
from typing import Any

from jaxtrain import storage
from jaxtrain.errors import exit_code, one_line
from jaxtrain.runs.clock import Clock

NAME = 'events.jsonl'
# Seconds between two `train` events.
TRAIN_EVERY = 10.0
# Seconds of silence before an `alive` event.
ALIVE_EVERY = 60.0
PHASES = ('init', 'restore', 'compile', 'eval', 'save')


class Timeline(AbstractContextManager):
    """Appends the events of one start of a run; leaving the context writes its exit.

    Args:
      workdir: the run directory.
      writes: whether this process writes.

    Attributes:
      reached: the last step that earlier starts are known to have done.
    """

    def __init__(self, workdir: storage.Path, writes: bool = True):
        self._place, self._writes = workdir / NAME, writes
        self._lines: storage.Lines | None = None
        self._held: list[dict[str, Any]] = []
        self._clock: Clock | None = None
        self._start, self._trained, self._said = 0, 0.0, 0.0
        self._one = threading.Lock()  # the watchdog and the peers have threads of their own
        self.reached = 0

    def begin(
        self, clock: Clock, steps: int, processes: int, devices: int, git: str | None
    ) -> None:
        """Says what begins. It is held until `open`: a run that cannot begin leaves nothing."""
        before = storage.read_lines(self._place)
        self._start = 1 + max((event['start'] for event in before), default=-1)
        self.reached = max((event['step'] for event in before), default=0)
        self._clock = clock
        self.add(
            'start', steps=steps, processes=processes, devices=devices,
            host=socket.gethostname(), pid=os.getpid(), git=git,
        )  # fmt: skip

    def open(self) -> None:
        """Writes what was held, and from now on what comes."""
        with self._one:
            if self._writes and not self._lines:
                self._lines = storage.Lines(self._place)
                for line in self._held:
                    self._lines.append(line)

    def add(self, event: str, **values: Any) -> None:
        if not self._writes or not self._clock:
            return
        head = {'event': event, 'time': round(time.time(), 3), 'start': self._start}
        line = head | {'step': self._clock.step} | values
        with self._one:
            self._said = time.monotonic()
            self._lines.append(line) if self._lines else self._held.append(line)

    def phase(self, name: str, seconds: float | None) -> None:
        """A phase of the clock begins, or has ended after so many seconds."""
        if name not in PHASES:
            return
        if seconds is None:
            self.add('begin', phase=name)
        else:
            self.add(name, seconds=round(seconds, 3))

    def trained(self, step: int) -> None:
        """Steps were logged."""
        if time.monotonic() - self._trained > TRAIN_EVERY:
            self._trained = time.monotonic()
            self.add('train', step=step)

    def alive(self) -> None:
        """The run goes on, as far as its watchdog can see."""
        if self._clock and time.monotonic() - self._said > ALIVE_EVERY:
            phase, _, seconds = self._clock.position()
            self.add('alive', phase=phase, seconds=round(seconds, 1))

    def hang(self, why: str) -> None:
        self.add('hang', why=why)

    def end(self, why: str, code: int) -> None:
        self.add('exit', code=code, why=why)
        with self._one:
            if self._lines:
                self._lines.close()
            self._writes = False  # of two threads that end a run the first one says why

    def __exit__(self, kind, error, trace) -> None:
        self.end(one_line(error), exit_code(error))
