"""What metrics become on their way: averages over windows of steps, lines of metrics.jsonl, rows on
the terminal, and the history that says which checkpoint is the best so far.
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

# Calls that may be under way: enough to hide the host's work, few enough to stop at once.
IN_FLIGHT = 4
# Numbers that say how fast a run was, and so differ when it is run again; all others are the same.
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
    """What a step is worth.

    Attributes:
      unit: what is counted, 'examples' or 'tokens'.
      count: of them in a step.
      flops: floating point operations of a step, over all devices.
      peak: of all devices together, per second in bfloat16; 0 where it is not known.
    """

    unit: str
    count: int
    flops: float
    peak: float


class Recorder:
    """Takes metrics as they come.

    Args:
      rates: the learning rate of each step, [steps].
      cadence: when a line is due, whether anything is validated, and which metric decides.
      metrics: the names of the task's metrics, in the order in which rows show them.

    Attributes:
      val: the val metrics by step, of the whole run so far.
    """

    def __init__(self, rates: np.ndarray, cadence: Cadence, metrics: Sequence[str]):
        self._rates, self._cadence, self._metrics = rates, cadence, metrics
        self.val: dict[int, Mapping[str, float]] = {}

    def best(self, steps: Iterable[int]) -> int | None:
        """The step among these with the best val metric so far; None without metrics."""
        return metric.best_of(self.val, self._cadence.best_metric, steps)

    def ranked(self, steps: Iterable[int]) -> list[int]:
        """Those among these steps that have val metrics, the best first."""
        return metric.ranked(self.val, self._cadence.best_metric, steps)

    def open(self, session: Session, work: Work, window: Mapping[str, float]) -> None:
        """Opens the log of a start that goes on after the step of the clock.

        Args:
          session: where lines and rows go, and the clock that says what time was spent on.
          work: what a step is worth.
          window: what `window` returned when that step was saved.
        """
        self._session, self._work = session, work
        make_room = functools.partial(checkpoint.make_room, session.manager)
        self._lines = session.folder.open_metrics(session.clock.step, make_room)
        self._averages = Averages(self._cadence.logs, self._trained, window)
        self._last_line = self._last_row = (session.clock.step, session.clock.read())

    @property
    def window(self) -> dict[str, float]:
        """Sums over the steps since the last line about training; JSON-able."""
        return self._averages.window

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a call that ended with `step`, see `Averages.push`."""
        self._averages.push(step, metrics)

    def drain(self) -> None:
        """Waits for all steps so far. UserError if a loss was not finite."""
        self._averages.drain()

    def validated(self, step: int, values: dict[str, float]) -> None:
        """Takes the val metrics of a step. UserError if the loss is not finite."""
        require_finite(f'the val loss is {values["loss"]} at step {step}', values['loss'])
        self.val[step] = values
        self._lines.append(step, 'val', values)
        self._row(step, {f'val {name}': value for name, value in values.items()})

    def tested(self, step: int, values: dict[str, float]) -> None:
        self._lines.append(step, 'test', values)

    def sync(self) -> None:
        """Has all lines on the disk."""
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()

    def _trained(self, step: int, means: dict[str, float]) -> None:
        before, now = self._last_line, self._session.clock.read()
        self._last_line = (step, now)
        lr = float(self._rates[step - 1])
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
                'lr': f'{self._rates[step - 1]:.2e}',
                'steps/s': number(speeds['steps_per_s']),
                f'{self._work.unit}/s': number(per_s),
                **({'mfu': f'{100 * speeds["mfu"]:.1f}%'} if 'mfu' in speeds else {}),
                'data wait': f'{100 * speeds["data_wait"]:.1f}%',
            }
        )


class Averages:
    """Metrics of steps on their way from the devices, averaged over windows, without ever holding
    up a step.

    The metrics of a call stay on the devices until a few later calls are on their way; only then
    does the host look at them. So the host never waits for the step that it just started, a loss
    that is not finite is noticed within a few calls (and before anything is evaluated or saved),
    and a window of steps is averaged exactly.

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


def speed(
    before: Mapping[str, float], now: Mapping[str, float], steps: int, work: Work
) -> dict[str, float]:
    """How fast steps were, by the seconds of each phase before and after them.

    Returns:
      `steps_per_s` and `examples_per_s` or `tokens_per_s`, of training alone; `mfu`, the share of
      the devices' peak that its arithmetic took (Chowdhery et al. 2022, arXiv:2204.02311, appendix
      B), where the peak is known; `data_wait`, the share of that time in which the devices waited
      for data; and the shares of `eval` and `save` in all of the time.
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
