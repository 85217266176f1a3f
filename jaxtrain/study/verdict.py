"""What the numbers of a comparison say: its rows, its pairs, and the verdict in words."""

from dataclasses import dataclass

from jaxtrain.study.stats import Interval


@dataclass(frozen=True)
class Arm:
    """One row of the table; costs are per run, means over the seeds.

    Attributes:
      name: the variant of the config file.
      data: what it was trained and tested on.
      init: 'random', or the checkpoint.
      seeds: number of runs.
      flops: floating point operations of training, as the compiler counts them.
      seconds: from start to end, compilation and evaluation included.
      accuracy: mean test accuracy with its interval.
      by_seed: test accuracy of each run.
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
    accuracy: Interval
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """Test accuracy of `first` minus that of `second`, paired by seed and test example."""

    first: str
    second: str
    difference: Interval

    def sentence(self) -> str:
        points, low, high = (
            100 * x for x in (self.difference.mean, self.difference.low, self.difference.high)
        )
        if self.difference.holds_zero:
            return (
                f'no measurable difference between {self.first} and {self.second} '
                f'({points:+.1f} points, 95% interval {low:+.1f} to {high:+.1f})'
            )
        word = 'above' if points > 0 else 'below'
        low, high = sorted((abs(low), abs(high)))
        return (
            f'{self.first} is {abs(points):.1f} points {word} {self.second} '
            f'(95% interval {low:.1f} to {high:.1f})'
        )


def verdict(arms: tuple[str, ...], pairs: list[Pair], accuracy: dict[str, float]) -> str:
    """What the numbers say, in a sentence that leads and one for each pair.

    Args:
      arms: names; the first is the one that the others are held against.
      pairs: all pairs of arms, the later one first.
      accuracy: mean test accuracy by arm.
    """
    base = arms[0]
    against = {pair.first: pair.difference for pair in pairs if pair.second == base}
    better = [arm for arm, d in against.items() if d.low > 0]
    worse = [arm for arm, d in against.items() if d.high < 0]
    if better:
        best = max(better, key=accuracy.__getitem__)
        lead = f'{best} is the arm to take: it beats {base}'
        rival = next((a for a in better if a != best and _tied(pairs, a, best)), None)
        lead += f', with no measurable difference to {rival}' if rival else ''
    elif worse and len(worse) == len(against):
        lead = f'{base} is the arm to take: every other arm falls below it'
    else:
        equal = [arm for arm in against if arm not in worse]
        lead = f'No measurable difference between {base} and {", ".join(equal)}: nothing is gained'
    return f'{lead}. {"; ".join(pair.sentence() for pair in pairs)}.'


def _tied(pairs: list[Pair], a: str, b: str) -> bool:
    return any({p.first, p.second} == {a, b} and p.difference.holds_zero for p in pairs)
