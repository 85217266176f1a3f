"""The result of a comparison: its rows, its pairs, and the verdict in words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxtrain.runs.metric import Metric
from jaxtrain.study.stats import Interval


@dataclass(frozen=True)
class Arm:
    """A row of the table; costs are per run, as means over the seeds.

    Attributes:
      name: the variant of the config file.
      data: the data set for training and test.
      init: 'random', or the checkpoint.
      seeds: number of runs.
      flops: floating point operations of training.
      seconds: total time, including compilation and evaluation.
      score: mean of the test metric with its interval.
      by_seed: the test metric of each run.
    """

    name: str
    data: str
    init: str
    seeds: int
    params_total: int
    params_trainable: int
    opt_state_bytes: int
    examples_seen: int
    flops: float
    seconds: float
    score: Interval
    by_seed: tuple[float, ...]

    def to_json(self, metric: Metric) -> dict[str, Any]:
        """The row in compare.json, in which the key of the score is the name of the metric."""
        return {metric.name if k == 'score' else k: value for k, value in asdict(self).items()}


@dataclass(frozen=True)
class Pair:
    """The test metric of `first` minus that of `second`, paired by seed and test example."""

    first: str
    second: str
    difference: Interval

    def sentence(self, metric: Metric) -> str:
        difference = self.difference
        unit = ' points' if metric.percent else f' of {metric.name}'
        if difference.holds_zero:
            numbers = (difference.mean, difference.low, difference.high)
            mean, low, high = (metric.text(x, '+') for x in numbers)
            return (
                f'no measurable difference between {self.first} and {self.second} '
                f'({mean}{unit}, 95% interval {low} to {high})'
            )
        word = 'above' if difference.mean > 0 else 'below'
        low, high = map(metric.text, sorted((abs(difference.low), abs(difference.high))))
        return (
            f'{self.first} is {metric.text(abs(difference.mean))}{unit} {word} {self.second} '
            f'(95% interval {low} to {high})'
        )


def verdict(
    metric: Metric, arms: tuple[str, ...], pairs: list[Pair], scores: Mapping[str, float]
) -> str:
    """Words the result: a leading sentence, and a clause for each pair.

    Args:
      metric: the metric by which arms are compared.
      arms: names of the arms; the first is the baseline.
      pairs: all pairs of arms, the later arm first.
      scores: mean of the test metric by arm.
    """
    base = arms[0]
    against = {pair.first: pair.difference for pair in pairs if pair.second == base}
    measurable = [arm for arm, d in against.items() if not d.holds_zero]
    better = [arm for arm in measurable if metric.better(against[arm].mean) > 0]
    worse = [arm for arm in measurable if arm not in better]
    if better:
        best = max(better, key=lambda arm: metric.better(scores[arm]))
        lead = f'{best} is the arm to take: it beats {base}'
        rival = next((a for a in better if a != best and _tied(pairs, a, best)), None)
        lead += f', with no measurable difference to {rival}' if rival else ''
    elif worse and len(worse) == len(against):
        word = 'falls below' if metric.higher_is_better else 'lies above'
        lead = f'{base} is the arm to take: every other arm {word} it'
    else:
        equal = [arm for arm in against if arm not in worse]
        lead = f'No measurable difference between {base} and {", ".join(equal)}: nothing is gained'
    return f'{lead}. {"; ".join(pair.sentence(metric) for pair in pairs)}.'


def _tied(pairs: list[Pair], a: str, b: str) -> bool:
    return any({p.first, p.second} == {a, b} and p.difference.holds_zero for p in pairs)
