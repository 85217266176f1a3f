"""Detects that a run hangs: a phase takes longer than its config allows.

Then every process writes the stack of each of its threads, the process that is behind is named, and
all exit with code 42. The stacks go to stderr, and to `RUN/stacks/PROCESS.txt` if that can be
written.
"""

import faulthandler
import functools
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress

from jaxtrain import storage
from jaxtrain.pod.peers import Peers, within
from jaxtrain.runs.events import Timeline

# Seconds that writing an event may take: it may be the disk that hangs.
WRITING = 5.0


class Watchdog(AbstractContextManager):
    """Watches while its context is open.

    Args:
      budgets: seconds by phase, see `Cadence.budgets`.
      peers: the other processes; knows what this one is doing, and ends the run on all of them.
      workdir: the run directory.
      timeline: records that the run is alive, and why it ends.
    """

    def __init__(
        self,
        budgets: Mapping[str, float],
        peers: Peers,
        workdir: storage.Path,
        timeline: Timeline,
    ):
        self._budgets, self._peers = budgets, peers
        self._workdir, self._timeline = workdir, timeline
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
            phase, step, seconds = self._peers.position()
            if seconds > self._budgets.get(phase, float('inf')):
                key = 'step' if phase in ('train', 'data_wait') else phase
                why = (
                    f'{phase} made no progress for {seconds:.0f} s at step {step} '
                    f'(config.budgets.{key})'
                )
                within(WRITING, functools.partial(self._timeline.hang, why))
                self._peers.hang(why)
                return

    def _live(self) -> None:
        """Runs in a thread of its own, because `_watch` must not wait for a disk."""
        while not self._done.wait(1.0):
            with suppress(OSError, ValueError):  # a full disk, or a file that is closed already
                self._timeline.alive()


def dump_stacks(workdir: storage.Path, process: int) -> None:
    """Writes the stack of each thread of this process."""
    with tempfile.TemporaryFile('w+') as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = f'stacks of process {process}\n{file.read()}'
    print(text, file=sys.stderr, flush=True)
    (workdir / 'stacks').mkdir(parents=True, exist_ok=True)
    storage.write(workdir / 'stacks' / f'{process}.txt', text.encode())
