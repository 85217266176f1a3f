"""A request to stop (SIGTERM), answered by all processes between the same calls of the step."""

import os
import signal
import threading
from contextlib import AbstractContextManager

from jax.experimental import multihost_utils


class StopRequest(AbstractContextManager):
    """While open, SIGTERM, however often sent, requests a stop and does not end the process."""

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
        """Makes the processes that JAX has connected stop together from now on.

        Since then, JAX's own notifier receives the signal and informs all of them.
        """
        self._several = True
        if self._asked:
            self._asked = False  # the notifier reports it to all processes at once
            os.kill(os.getpid(), signal.SIGTERM)

    def asked_here(self) -> bool:
        """Whether this process was asked to stop before it was connected to others."""
        return self._asked

    def asked(self) -> bool:
        """Whether to stop here; all processes call it equally often and get the same answer."""
        self._times += 1
        if self._several:
            # JAX agrees on a number at which all stop, and every process must ask about it. So it
            # cannot be the step, as one call may run several. For later numbers the answer is no.
            self._asked = self._asked or multihost_utils.reached_preemption_sync_point(self._times)
        return self._asked

    def _note(self, *_):
        self._asked = True
