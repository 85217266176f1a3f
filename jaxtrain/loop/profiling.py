"""Profiling: a trace of some steps on host and devices, for Perfetto or XProf.

The trace is in RUN/profile/plugins/profile/TIME: `perfetto_trace.json.gz` opens in Perfetto's
viewer (ui.perfetto.dev), `*.xplane.pb` in XProf.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import jax

from jaxtrain.errors import UserError


def check_profile(value: tuple, steps: int) -> tuple[int, int] | None:
    """Returns `config.profile` as (first, last) step, or None if it is empty.

    Raises:
      UserError: not two steps of the run, in order.
    """
    if not value:
        return None
    whole = len(value) == 2 and all(type(step) is int for step in value)
    if not whole or not 1 <= value[0] <= value[1] <= steps:
        raise UserError(
            f'config.profile={value!r} must be (first, last) of the steps 1 to {steps}, as in '
            f'({min(10, steps)}, {min(20, steps)}), or () to trace nothing'
        )
    return value[0], value[1]


class Trace(AbstractContextManager):
    """Traces the calls that take these steps; a context, so that the trace is always written.

    Args:
      folder: folder to write to, `profile` in the run directory.
      steps: first and last step to trace, or None.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        self._folder, self._steps = folder, steps
        self._running = False
        self._call: AbstractContextManager = nullcontext()

    def __exit__(self, *error):
        self._stop()

    def before(self, step: int, last: int) -> None:
        """Must be called when `step` is done, before the steps up to `last` are dispatched."""
        if not self._steps or last < self._steps[0]:
            return
        if not self._running:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True
        # XProf groups events by this step number.
        self._call = jax.profiler.StepTraceAnnotation('train', step_num=step)
        self._call.__enter__()

    def after(self, step: int, outputs: Any) -> None:
        """Must be called when these steps are dispatched, with their outputs."""
        if not self._running or self._steps is None:
            return
        self._call.__exit__(None, None, None)
        if step >= self._steps[1]:
            jax.block_until_ready(outputs)  # once in a run
            self._stop()

    def _stop(self) -> None:
        self._steps = None
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
