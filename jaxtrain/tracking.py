"""Training metrics on their way from the devices to the log, without ever holding up a step.

Each step's metrics stay on the devices until a few later steps are on their way; only then does the
host look at them. So the host never waits for the step that it just started, a loss that is not
finite is noticed within a few steps (and before anything is evaluated or saved), and a window of
`log_every` steps is averaged exactly.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxtrain.errors import UserError

# Steps that may be under way: enough to hide the host's work, few enough to stop at once.
IN_FLIGHT = 4


class Tracker:
    """Averages metrics over windows of steps.

    Args:
      log_every: steps per window.
      emit: called with (step, means) at the end of each window.
      window: what `window` returned when the run was saved, to go on within a window.
    """

    def __init__(
        self,
        log_every: int,
        emit: Callable[[int, dict[str, float]], None],
        window: Mapping[str, float] | None = None,
    ):
        self._log_every, self._emit = log_every, emit
        self._pending: deque[tuple[int, Any]] = deque()
        self._sums = dict(window or {})
        self.means: dict[str, float] = {}

    @property
    def window(self) -> dict[str, float]:
        """Sums over the window that is not complete yet; JSON-able."""
        return dict(self._sums)

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes a step's metrics, float scalars still being computed."""
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
        step, metrics = self._pending.popleft()
        values = {name: float(value) for name, value in metrics.items()}
        # The loss is of the parameters before the step: the other numbers tell what became of them.
        for name in ('loss', *values):
            require_finite(f'the {name} is {values[name]} at step {step}', values[name])
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._sums['steps'] = self._sums.get('steps', 0) + 1
        if step % self._log_every == 0:
            count = self._sums.pop('steps')
            self.means = {name: total / count for name, total in self._sums.items()}
            self._sums = {}
            self._emit(step, self.means)


def require_finite(what: str, value: float) -> None:
    """UserError if a number that training depends on is not finite any more."""
    if not math.isfinite(value):
        raise UserError(
            f'{what}; the run stops and keeps its last checkpoint, from before that. Lower '
            'config.optim.lr, or set config.optim.warmup_steps or config.optim.clip_norm'
        )
