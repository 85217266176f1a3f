"""A request to stop (SIGTERM), answered between two calls of the step, by all processes at once."""

import signal
import threading
from contextlib import AbstractContextManager

import jax
from jax.experimental import multihost_utils


class StopRequest(AbstractContextManager):
    """While open, SIGTERM asks for a stop instead of ending the process."""

    def __enter__(self):
        self._asked, self._times = False, 0
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

    def asked(self) -> bool:
        """Whether to stop here; every process asks equally often and gets the same answer."""
        self._times += 1
        if self._single:
            return self._asked
        # JAX agrees on a number at which all stop, and it must be one that each asks about: so not
        # the step, of which a call may take several.
        return multihost_utils.reached_preemption_sync_point(self._times)

    def _note(self, *_):
        self._asked = True
