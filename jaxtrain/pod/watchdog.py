"""Notices that a run hangs: a phase that does not end in the time that its config allows.

Then every process writes where each of its threads is, the process that lags is named, and all exit
with code 42. The stacks go to stderr, and to `RUN/stacks/PROCESS.txt` if that can be written.
"""

import faulthandler
import functools
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress

from jaxtrain import storage
from jaxtrain.pod.peers import Peers, within
from jaxtrain.runs.events import Timeline

# Seconds to write an event in: what hangs may be the disk.
WRITING = 5.0


class Watchdog(AbstractContextManager):
    """Watches while its context is open.

    Args:
      budgets: seconds by phase, as `Schedule.budgets`.
      position: () -> (phase, step, seconds that it has been so), as `Clock.position`.
      peers: how to end the run.
      workdir: the run directory.
      timeline: told that the run is alive, and why it ends.
    """

    def __init__(
        self,
        budgets: Mapping[str, float],
        position: Callable[[], tuple[str, int, float]],
        peers: Peers,
        workdir: storage.Path,
        timeline: Timeline,
    ):
        self._budgets, self._position = budgets, position
        self._peers, self._workdir, self._timeline = peers, workdir, timeline
        self._done = threading.Event()

    def __enter__(self):
        self._peers.dump = lambda: dump_stacks(self._workdir, self._peers.place.process)
        shortest = min(self._budgets.values(), default=60.0)
        args = (min(1.0, shortest / 4),)
        threading.Thread(target=self._watch, args=args, name='watchdog', daemon=True).start()
        threading.Thread(target=self._live, name='alive', daemon=True).start()
        return self

    def __exit__(self, *error):
        self._done.set()

    def _watch(self, every: float) -> None:
        while not self._done.wait(every):
            phase, step, seconds = self._position()
            if seconds > self._budgets.get(phase, float('inf')):
                named = 'step' if phase in ('train', 'data_wait') else phase
                why = (
                    f'{phase} has not got on for {seconds:.0f} s at step {step} '
                    f'(config.budgets.{named})'
                )
                within(WRITING, functools.partial(self._timeline.hang, why))
                self._peers.hang(why)
                return

    def _live(self) -> None:
        """Apart from `_watch`, which must not wait for a disk."""
        while not self._done.wait(1.0):
            with suppress(OSError, ValueError):  # a full disk, or a file that is closed by now
                self._timeline.alive()


def dump_stacks(workdir: storage.Path, process: int) -> None:
    """Writes what each thread of this process is doing."""
    with tempfile.TemporaryFile('w+') as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = f'stacks of process {process}\n{file.read()}'
    print(text, file=sys.stderr, flush=True)
    (workdir / 'stacks').mkdir(parents=True, exist_ok=True)
    storage.write(workdir / 'stacks' / f'{process}.txt', text.encode())
