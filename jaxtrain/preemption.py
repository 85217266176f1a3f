"""A request to stop (SIGTERM), answered between two steps and by all processes at the same one."""

import signal
import threading
from contextlib import AbstractContextManager

import jax
from jax.experimental import multihost_utils


class StopRequest(AbstractContextManager):
    """While open, SIGTERM asks for a stop instead of ending the process."""

    def __enter__(self):
        self._asked = False
        # With several processes JAX's own notifier takes the signal and spreads it to all.
        self._single = jax.process_count() == 1
        if self._single and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        else:
            self._before = None
        return self

    def __exit__(self, *error):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def at(self, step: int) -> bool:
        """Whether to stop after this step; the same answer on every process."""
        return self._asked if self._single else multihost_utils.reached_preemption_sync_point(step)

    def _note(self, *_):
        self._asked = True
