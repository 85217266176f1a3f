"""The recorder of metrics: it averages them over windows of steps, writes them to metrics.jsonl and
the terminal, and keeps the history that decides which checkpoint is the best so far.
"""

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxtrain.checkpoints import checkpoint
from jaxtrain.errors import UserError
from jaxtrain.loop.cadence import Cadence
from jaxtrain.loop.session import Session
from jaxtrain.runs import metric
from jaxtrain.terminal import number

# Calls in flight: enough to hide the work of the host, few enough to stop soon.
IN_FLIGHT = 4
# Metrics of speed, which differ when a run is repeated; all others are the same.
TIMES = (
    'steps_per_s',
    'examples_per_s',
    'tokens_per_s',
    'mfu',
    'data_wait',
    'eval_share',
    'save_share',
)


@dataclass(frozen=True)
class Work:
    """The amount of work in a step.

    Attributes:
      unit: what is counted, 'examples' or 'tokens'.
      count: number of units in a step.
      flops: floating point operations of a step, over all devices.
      peak: peak rate of all devices together, in bfloat16 FLOP/s; 0 if it is unknown.
    """

    unit: str
    count: int
    flops: float
    peak: float


class Recorder:
    """Records the metrics of a run.

    Args:
      rate: step, counted from 0 -> its learning rate.
      cadence: when a line is due, whether the run evaluates on val, and which metric decides.
      metrics: the names of the task's metrics, in the order of the printed columns.

    Attributes:
      val: the val metrics by step, of the whole run so far.
    """

    def __init__(self, rate: Callable[[int], float], cadence: Cadence, metrics: Sequence[str]):
        self._rate, self._cadence, self._metrics = rate, cadence, metrics
        self.val: dict[int, Mapping[str, float]] = {}

    def best(self, steps: Iterable[int]) -> int | None:
        """The step among these with the best val metric; None if none of them has metrics."""
        return metric.best_of(self.val, self._cadence.best_metric, steps)

    def ranked(self, steps: Iterable[int]) -> list[int]:
        """The steps among these that have val metrics, best first."""
        return metric.ranked(self.val, self._cadence.best_metric, steps)

    def open(self, session: Session, work: Work, window: Mapping[str, float]) -> None:
        """Opens the log of a start that continues after the step of the clock.

        Args:
          session: the run directory and terminal to write to, and the clock of seconds by phase.
          work: the amount of work in a step.
          window: the value of `window` when that step was saved.
        """
        self._session, self._work = session, work
        make_room = functools.partial(checkpoint.make_room, session.manager)
        self._lines = session.folder.open_metrics(session.clock.step, make_room)
        self._averages = Averages(self._cadence.logs, self._trained, window)
        self._last_line = self._last_row = (session.clock.step, session.clock.read())

    @property
    def window(self) -> dict[str, float]:
        """Sums over the steps since the last training line; JSON-serialisable."""
        return self._averages.window

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Adds the metrics of a call that ended with `step`, see `Averages.push`."""
        self._averages.push(step, metrics)

    def drain(self) -> None:
        """Waits for all steps so far. UserError if a loss was not finite."""
        self._averages.drain()

    def validated(self, step: int, values: dict[str, float]) -> None:
        """Records the val metrics of a step. UserError if the loss is not finite."""
        require_finite(f'the val loss is {values["loss"]} at step {step}', values['loss'])
        self.val[step] = values
        self._lines.append(step, 'val', values)
        self._row(step, {f'val {name}': value for name, value in values.items()})

    def tested(self, step: int, values: dict[str, float]) -> None:
        self._lines.append(step, 'test', values)

    def sync(self) -> None:
        """Flushes all lines to disk."""
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()

    def _trained(self, step: int, means: dict[str, float]) -> None:
        before, now = self._last_line, self._session.clock.read()
        self._last_line = (step, now)
        lr = self._rate(step - 1)
        speeds = speed(before[1], now, step - before[0], self._work)
        self._lines.append(step, 'train', {**means, 'lr': lr, **speeds})
        self._session.timeline.trained(step)
        if not self._cadence.val:
            self._row(step, {name: means[name] for name in self._metrics if name in means})

    def _row(self, step: int, values: dict[str, float]) -> None:
        before, now = self._last_row, self._session.clock.read()
        self._last_row = (step, now)
        speeds = speed(before[1], now, step - before[0], self._work)
        per_s, means = speeds[f'{self._work.unit}_per_s'], self._averages.means
        self._session.terminal.row(
            {
                'step': str(step),
                'loss': number(means['loss']) if means else '-',
                **{name: number(value) for name, value in values.items()},
                'lr': f'{self._rate(step - 1):.2e}',
                'steps/s': number(speeds['steps_per_s']),
                f'{self._work.unit}/s': number(per_s),
                **({'mfu': f'{100 * speeds["mfu"]:.1f}%'} if 'mfu' in speeds else {}),
                'data wait': f'{100 * speeds["data_wait"]:.1f}%',
            }
        )


class Averages:
    """Averages metrics over windows of steps without blocking the devices.

    The host reads the metrics of a call only when a few later calls have been dispatched. So it
    never waits for the step that it has just dispatched, a loss that is not finite is noticed
    within a few calls (and before anything is evaluated or saved), and a window of steps is
    averaged exactly.

    Args:
      logs: returns whether a window ends with a step.
      emit: called with (step, means) at the end of each window.
      window: the value of `window` when the run was saved, to continue within a window.
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
        """Sums over the window that is not complete yet; JSON-serialisable."""
        return dict(self._sums)

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Adds the metrics of a call that ended with `step`, which may still be running.

        Args:
          step: number of finished steps after the call.
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
        # The loss belongs to the parameters before the step; the other metrics show the update.
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
    """Raises a UserError if a number that training depends on is not finite."""
    if not math.isfinite(value):
        raise UserError(
            f'{what}; the run stops and keeps its last checkpoint, from before that. Lower '
            'config.optim.lr, or set config.optim.warmup or config.optim.clip_norm'
        )


def speed(
    before: Mapping[str, float], now: Mapping[str, float], steps: int, work: Work
) -> dict[str, float]:
    """Speed of training, from the seconds by phase before and after some steps.

    Returns:
      `steps_per_s` and `examples_per_s` or `tokens_per_s`, during training alone; `mfu`, the share
      of the devices' peak that the model's operations reach (Chowdhery et al. 2022,
      arXiv:2204.02311, appendix B), if the peak is known; `data_wait`, the share of training time
      spent waiting for data; and `eval_share` and `save_share`, their shares of the total time.
    """
    spent = {phase: now[phase] - before[phase] for phase in now}
    training = max(spent['train'] + spent['data_wait'], 1e-9)
    whole = max(training + spent['eval'] + spent['save'], 1e-9)
    rate = steps / training
    return {
        'steps_per_s': rate,
        f'{work.unit}_per_s': rate * work.count,
        **({'mfu': rate * work.flops / work.peak} if work.peak else {}),
        'data_wait': spent['data_wait'] / training,
        'eval_share': spent['eval'] / whole,
        'save_share': spent['save'] / whole,
    }
