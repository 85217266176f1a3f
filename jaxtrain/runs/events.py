"""The timeline of a run over all its starts: events.jsonl, one JSON object per line.

| event   | when                                         | keys                               |
|---------|----------------------------------------------|------------------------------------|
| start   | the run begins or resumes                    | steps, processes, devices, host,   |
|         |                                              | pid, git                           |
| begin   | one of the phases below begins               | phase                              |
| init    | config, data and model have been checked     | seconds                            |
| restore | the state has been read or initialised       | seconds                            |
| lost    | earlier steps were not in the checkpoint     | steps                              |
| damaged | a checkpoint could not be used               | why                                |
| compile | the programs have been compiled              | seconds                            |
| train   | steps were logged (every 10 s at most)       |                                    |
| alive   | there was no other event for a minute        | phase, seconds                     |
| eval    | a split was evaluated                        | seconds                            |
| save    | a checkpoint was begun                       | seconds for which training waited  |
| failed  | a checkpoint could not be written            | why                                |
| hang    | no progress for longer than allowed          | why                                |
| exit    | the process ends                             | code, why                          |

Each has `event`, `time` (seconds since 1970), `start` (0 for the first) and `step`, the last step
done. A start without an exit was killed. Process 0 writes the file without waiting for the disk, so
that lines may be lost if the machine fails.
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
# Seconds without an event before an `alive` event.
ALIVE_EVERY = 60.0
PHASES = ('init', 'restore', 'compile', 'eval', 'save')


class Timeline(AbstractContextManager):
    """Timeline that appends the events of one start of a run; leaving the context adds the exit.

    Args:
      workdir: the run directory.
      writes: whether this process writes.

    Attributes:
      reached: the last step that earlier starts have recorded.
    """

    def __init__(self, workdir: storage.Path, writes: bool = True):
        self._path, self._writes = workdir / NAME, writes
        self._lines: storage.Lines | None = None
        self._held: list[dict[str, Any]] = []
        self._clock: Clock | None = None
        self._start, self._last_train, self._last_event = 0, 0.0, 0.0
        self._lock = threading.Lock()  # the watchdog and the peers have threads of their own
        self.reached = 0

    def begin(
        self, clock: Clock, steps: int, processes: int, devices: int, git: str | None
    ) -> None:
        """Add the start, which is held until `open`: a run that cannot begin leaves no file."""
        before = storage.read_lines(self._path)
        self._start = 1 + max((event['start'] for event in before), default=-1)
        self.reached = max((event['step'] for event in before), default=0)
        self._clock = clock
        self.add(
            'start', steps=steps, processes=processes, devices=devices,
            host=socket.gethostname(), pid=os.getpid(), git=git,
        )  # fmt: skip

    def open(self) -> None:
        """Write the events held so far, and each later event at once."""
        with self._lock:
            if self._writes and not self._lines:
                self._lines = storage.Lines(self._path)
                for line in self._held:
                    self._lines.append(line)

    def add(self, event: str, **values: Any) -> None:
        if not self._writes or not self._clock:
            return
        head = {'event': event, 'time': round(time.time(), 3), 'start': self._start}
        line = head | {'step': self._clock.step} | values
        with self._lock:
            self._last_event = time.monotonic()
            self._lines.append(line) if self._lines else self._held.append(line)

    def phase(self, name: str, seconds: float | None) -> None:
        """Add the beginning of a phase, or its end after this many seconds (a `Clock` listener)."""
        if name not in PHASES:
            return
        if seconds is None:
            self.add('begin', phase=name)
        else:
            self.add(name, seconds=round(seconds, 3))

    def trained(self, step: int) -> None:
        """Add that steps were logged, at most every `TRAIN_EVERY` seconds."""
        if time.monotonic() - self._last_train > TRAIN_EVERY:
            self._last_train = time.monotonic()
            self.add('train', step=step)

    def alive(self) -> None:
        """Add that the run makes progress, if there was no event for `ALIVE_EVERY` seconds."""
        if self._clock and time.monotonic() - self._last_event > ALIVE_EVERY:
            phase, _, seconds = self._clock.position()
            self.add('alive', phase=phase, seconds=round(seconds, 1))

    def hang(self, why: str) -> None:
        self.add('hang', why=why)

    def end(self, why: str, code: int) -> None:
        self.add('exit', code=code, why=why)
        with self._lock:
            if self._lines:
                self._lines.close()
            self._writes = False  # if two threads end a run, the first exit counts

    def __exit__(self, kind, error, trace) -> None:
        self.end(one_line(error), exit_code(error))
