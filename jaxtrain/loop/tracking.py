"""Training metrics on their way from the devices to the log, without ever holding up a step.

The metrics of a call stay on the devices until a few later calls are on their way; only then does
the host look at them. So the host never waits for the step that it just started, a loss that is not
finite is noticed within a few calls (and before anything is evaluated or saved), and a window of
steps is averaged exactly.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxtrain.errors import UserError

# Calls that may be under way: enough to hide the host's work, few enough to stop at once.
IN_FLIGHT = 4


class Tracker:
    """Averages metrics over windows of steps.

    Args:
      logs: tells whether a window ends with a step.
      emit: called with (step, means) at the end of each window.
      window: what `window` returned when the run was saved, to go on within a window.
    """

    def __init__(
        self,
        logs: Callable[[int], bool],
        emit: Callable[[int, dict[str, float]], None],
        window: Mapping[str, float] | None = None,
    ):
        self._logs, self._emit = logs, emit
        self._pending: deque[tuple[int, Any]] = deque()
        self._sums = dict(window or {})
        self.means: dict[str, float] = {}

    @property
    def window(self) -> dict[str, float]:
        """Sums over the window that is not complete yet; JSON-able."""
        return dict(self._sums)

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a call that ended with `step`, still being computed.

        Args:
          step: steps done after the call.
          metrics: float32 scalars, or arrays [steps of the call].
        """
        for value in metrics.values():
            value.copy_to_host_async()
        self._pending.append((step, metrics))
        if len(self._pending) > IN_FLIGHT:
            self._settle()

    def drain(self) -> None:
        """Waits for all steps so far. UserError if a loss was not finite."""
        while self._pending:
            self._settle()

    def _settle(self) -> None:
        last, metrics = self._pending.popleft()
        columns = {name: np.atleast_1d(value).tolist() for name, value in metrics.items()}
        rows = list(zip(*columns.values(), strict=True))
        for step, row in enumerate(rows, last - len(rows) + 1):
            self._take(step, dict(zip(columns, row, strict=True)))

    def _take(self, step: int, values: dict[str, float]) -> None:
        # The loss is of the parameters before the step: the other numbers tell what became of them.
        for name in ('loss', *values):
            require_finite(f'the {name} is {values[name]} at step {step}', values[name])
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._sums['steps'] = self._sums.get('steps', 0) + 1
        if self._logs(step):
            count = self._sums.pop('steps')
            self.means = {name: total / count for name, total in self._sums.items()}
            self._sums = {}
            self._emit(step, self.means)


def require_finite(what: str, value: float) -> None:
    """UserError if a number that training depends on is not finite any more."""
    if not math.isfinite(value):
        raise UserError(
            f'{what}; the run stops and keeps its last checkpoint, from before that. Lower '
            'config.optim.lr, or set config.optim.warmup or config.optim.clip_norm'
        )
