"""Tables of measurements: medians, ranges, and ratios that are paired by round."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

OURS = 'jaxtrain'

# One measurement of each contestant, in the order of the rounds: contestant -> values.
Rounds = dict[str, list[float]]


@dataclass(frozen=True)
class Spread:
    """The median, the least and the greatest of some values."""

    median: float
    least: float
    greatest: float


def spread(values: Sequence[float]) -> Spread:
    """The spread of some values. ValueError if there are no values."""
    return Spread(median(values), min(values), max(values))


def ratios(rounds: Rounds) -> dict[str, Spread]:
    """Other contestant -> the spread of our value over theirs in the same round.

    The ratios are paired because a slow phase of the machine affects a whole round.
    """
    ours = rounds[OURS]
    return {
        name: spread([a / b for a, b in zip(ours, theirs, strict=True)])
        for name, theirs in rounds.items()
        if name != OURS
    }


def table(speed: Rounds, memory: Rounds) -> str:
    """Markdown: a row per contestant, ours first.

    Args:
      speed: steps per second.
      memory: peak MiB.
    """
    faster, larger = ratios(speed), ratios(memory)
    lines = [
        '| | steps/s | peak MiB | our speed / theirs | our memory / theirs |',
        '|---|---|---|---|---|',
    ]
    for name in speed:
        cells = [cell(spread(speed[name])), cell(spread(memory[name]), digits=0)]
        cells += [cell(every[name]) if name in every else '' for every in (faster, larger)]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def cell(value: Spread, digits: int = 2) -> str:
    """The median, and in brackets the least and the greatest."""
    middle, least, greatest = (
        f'{number:,.{digits if abs(number) < 100 else 0}f}'
        for number in (value.median, value.least, value.greatest)
    )
    return f'{middle} [{least}, {greatest}]'
