"""A request to stop (SIGTERM), answered between two calls of the step, by all processes at once."""

import os
import signal
import threading
from contextlib import AbstractContextManager

from jax.experimental import multihost_utils


class StopRequest(AbstractContextManager):
    """While open, SIGTERM asks for a stop instead of ending the process, however often it comes."""

    def __enter__(self) -> 'StopRequest':
        self._asked, self._times, self._several = False, 0, False
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def spread(self) -> None:
        """From now on the processes that JAX has joined stop together.

        JAX's own notifier takes the signal since then, and tells all of them.
        """
        self._several = True
        if self._asked:
            self._asked = False  # for the notifier to say, at the same time as to the others
            os.kill(os.getpid(), signal.SIGTERM)

    def asked_here(self) -> bool:
        """Whether this process was asked, before it was joined to others."""
        return self._asked

    def asked(self) -> bool:
        """Whether to stop here; every process asks equally often and gets the same answer."""
        self._times += 1
        if self._several:
            # JAX agrees on a number at which all stop, and it must be one that each asks about: so
            # not the step, of which a call may take several. Later numbers are answered by no.
            self._asked = self._asked or multihost_utils.reached_preemption_sync_point(self._times)
        return self._asked

    def _note(self, *_):
        self._asked = True
