"""The time that a run spends in each phase."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

PHASES = ('init', 'restore', 'compile', 'train', 'data_wait', 'eval', 'save')


class Clock:
    """Clock that adds up the seconds of each phase, also over restarts.

    The time of a phase inside another does not count for the outer one, so that the phases add up
    to the elapsed time.

    Args:
      before: seconds by phase that earlier starts of the run spent.
      listener: called with (phase, None) when a phase begins, and with (phase, seconds since it
        began) when it has ended without an error.

    Attributes:
      step: the last step done, which the loop sets.
    """

    def __init__(
        self,
        before: Mapping[str, float] | None = None,
        listener: Callable[[str, float | None], None] = lambda phase, seconds: None,
    ):
        self.seconds = {phase: 0.0 for phase in PHASES} | dict(before or {})
        self.step = 0
        self._open: list[str] = []
        self._listener = listener
        self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._settle()
        began = self._since
        self._open.append(name)
        self._listener(name, None)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()
        self._listener(name, self._since - began)

    def read(self) -> dict[str, float]:
        """Return the seconds by phase up to now."""
        self._settle()
        return dict(self.seconds)

    def position(self) -> tuple[str, int, float]:
        """Return (phase, step, seconds since a phase last began or ended), for other threads."""
        phase = next(iter(self._open[-1:]), 'end')
        return phase, self.step, time.perf_counter() - self._since

    def add(self, before: Mapping[str, float]) -> None:
        """Add the seconds that earlier starts of the run spent."""
        for phase, seconds in before.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
