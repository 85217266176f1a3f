"""Where the time of a run goes, by phase."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PHASES = ('init', 'compile', 'train', 'data_wait', 'eval', 'save')


class Clock:
    """Adds up the seconds of each phase, also over restarts.

    A phase inside another is taken out of it, so the phases add up to the time that passed.

    Args:
      before: seconds by phase that earlier starts of the run spent.
    """

    def __init__(self, before: Mapping[str, float] | None = None):
        self.seconds = {phase: 0.0 for phase in PHASES} | dict(before or {})
        self._open: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def read(self) -> dict[str, float]:
        """Seconds by phase up to now."""
        self._settle()
        return dict(self.seconds)

    def add(self, before: Mapping[str, float]) -> None:
        """Takes in the seconds that earlier starts of the run spent."""
        for phase, seconds in before.items():
            self.seconds[phase] += seconds

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
