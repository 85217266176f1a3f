"""What a run says of itself as it goes on: lines of metrics.jsonl, and rows of the table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtrain.loop.job import Job
from jaxtrain.loop.schedule import Schedule
from jaxtrain.runs import run
from jaxtrain.runs.clock import Clock
from jaxtrain.terminal import Terminal, number

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


class Progress:
    """Takes metrics as they come and says how fast they came.

    Args:
      job, plan: of the run.
      work: what a step is worth.
      lines: where lines go.
      clock: the run's; its phases tell what time was spent on.
      terminal: where rows go.
      trained: told the step of each line about training.
      step: done at the start.
    """

    def __init__(
        self,
        job: Job,
        plan: Schedule,
        work: Work,
        lines: run.MetricsLog | run.NoLog,
        clock: Clock,
        terminal: Terminal,
        trained: Callable[[int], None],
        step: int,
    ):
        self._rates, self._validates = job.optimizer.learning_rate, bool(plan.val)
        self._metrics = [metric.name for metric in job.task.metrics]
        self._work, self._lines, self._clock, self._terminal = work, lines, clock, terminal
        self._trained = trained
        self._last_line = self._last_row = (step, clock.read())
        self._means: dict[str, float] = {}

    def train(self, step: int, means: dict[str, float]) -> None:
        before, now = self._last_line, self._clock.read()
        self._last_line, self._means = (step, now), means
        lr = float(self._rates[step - 1])
        speeds = speed(before[1], now, step - before[0], self._work)
        self._lines.append(step, 'train', {**means, 'lr': lr, **speeds})
        self._trained(step)
        if not self._validates:
            self._row(step, {name: means[name] for name in self._metrics if name in means})

    def val(self, step: int, values: dict[str, float]) -> None:
        self._lines.append(step, 'val', values)
        self._row(step, {f'val {name}': value for name, value in values.items()})

    def test(self, step: int, values: dict[str, float]) -> None:
        self._lines.append(step, 'test', values)

    def sync(self) -> None:
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()

    def _row(self, step: int, values: dict[str, float]) -> None:
        before, now = self._last_row, self._clock.read()
        self._last_row = (step, now)
        speeds = speed(before[1], now, step - before[0], self._work)
        per_s = speeds[f'{self._work.unit}_per_s']
        self._terminal.row(
            {
                'step': str(step),
                'loss': number(self._means['loss']) if self._means else '-',
                **{name: number(value) for name, value in values.items()},
                'lr': f'{self._rates[step - 1]:.2e}',
                'steps/s': number(speeds['steps_per_s']),
                f'{self._work.unit}/s': number(per_s),
                **({'mfu': f'{100 * speeds["mfu"]:.1f}%'} if 'mfu' in speeds else {}),
                'data wait': f'{100 * speeds["data_wait"]:.1f}%',
            }
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
