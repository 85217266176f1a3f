"""The verdict of a comparison: one rule, and its result in words."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxtrain.runs.metric import Metric
from jaxtrain.study.pairs import FEWEST_EXAMPLES, Pair
from jaxtrain.study.stats import LEVEL, Parts

# Counts beyond which more seeds or test examples are not proposed.
MOST_SEEDS, MOST_EXAMPLES = 1000, 10**7
# Number of arms up to which a verdict words the differences of all pairs.
MOST_ARMS = 3


@dataclass(frozen=True)
class Question:
    """What a verdict is made from.

    Attributes:
      metric: the metric by which arms are compared.
      tolerance: how far behind the best an arm may be, in the unit of the metric.
      costs: training cost per run by arm, in the order of the config.
      pairs: all pairs of arms.
      seeds, examples: the numbers of seeds and test examples.
    """

    metric: Metric
    tolerance: float
    costs: Mapping[str, float]
    pairs: list[Pair]
    seeds: int
    examples: int

    def behind(self, arm: str) -> dict[str, float]:
        """How far `arm` may be behind each other arm, by the ends of the intervals."""
        limits = {}
        for pair in self.pairs:
            if arm in (pair.first, pair.second):
                other, difference = pair.against(arm)
                ends = (difference.low, difference.high)
                limits[other] = max(self.metric.better(end) for end in ends)
        return limits

    def is_close(self, arm: str) -> bool:
        """Whether all intervals show that `arm` is within the tolerance of the best."""
        return max(self.behind(arm).values()) <= self.tolerance

    def is_worse(self, arm: str) -> bool:
        """Whether another arm is measurably better."""
        pairs = [pair for pair in self.pairs if arm in (pair.first, pair.second) and pair.differs]
        return any(self.metric.better(pair.against(arm)[1].mean) > 0 for pair in pairs)


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    Attributes:
      choice: the arm to take, or None.
      decided: whether the rule decides; otherwise the choice holds until more is known.
      text: a leading sentence, and a clause for each pair.
    """

    choice: str | None
    decided: bool
    text: str


def rule(metric: Metric, tolerance: float) -> str:
    """States the rule of `verdict`."""
    return (
        f'The choice is the cheapest arm within {_amount(metric, tolerance)} of the best '
        '(`config.compare.tolerance`), as far as all 95% intervals show, or else the best, if '
        'every other arm is measurably worse than another one. Otherwise the comparison cannot '
        'tell, and the choice is the cheapest arm that is not ruled out. Arms differ measurably '
        f"if p, corrected for all pairs by Holm's method, is less than {1 - LEVEL:.2g}. The cost "
        'of an arm is the GFLOP of a run, without its checkpoint. One seed, or fewer than '
        f'{FEWEST_EXAMPLES} test examples, gives no verdict.'
    )


def verdict(question: Question) -> Verdict:
    """Applies the rule, and words its result."""
    if question.seeds == 1:
        lead = (
            'One seed gives no verdict on the arms, because another seed may reverse it. It only '
            'compares the models at hand'
        )
    elif question.examples < FEWEST_EXAMPLES:
        lead = (
            f'Too few test examples for a verdict on the arms: {question.examples}, where at least '
            f'{FEWEST_EXAMPLES} are required'
        )
    else:
        choice, decided, lead = _choose(question)
        if question.seeds == 2:
            lead += (
                '. Caution: two seeds measure poorly how much seeds matter; use three or more '
                '(config.compare.seeds)'
            )
        return Verdict(choice, decided, f'{lead}. {_clauses(question, choice)}.')
    return Verdict(None, False, f'{lead}: {_clauses(question)}.')


def _clauses(question: Question, choice: str = '') -> str:
    """The differences in words; if they are many, only those of the choice."""
    pairs = question.pairs
    if len(question.costs) > MOST_ARMS:
        pairs = [p for p in pairs if choice in (p.first, p.second)] or pairs[:1]
    text = '; '.join(_clause(pair, question) for pair in pairs)
    rest = len(question.pairs) - len(pairs)
    return f'{text}; the report has {rest} more differences' if rest else text


def _choose(question: Question) -> tuple[str, bool, str]:
    """The choice, whether it is decided, and the leading sentence."""
    order = sorted(question.costs, key=lambda arm: question.costs[arm])
    # The arm with the best mean is always left.
    left = [arm for arm in order if question.is_close(arm) or not question.is_worse(arm)]
    first, *others = left
    if not others:
        return first, True, f'{first} is the arm to take: every other arm is measurably worse'
    if question.is_close(first):
        amount = _amount(question.metric, question.tolerance)
        return first, True, f'{first} is the arm to take: the cheapest within {amount} of the best'
    behind = question.behind(first)
    rival = max(others, key=lambda arm: behind[arm])
    possible = _amount(question.metric, behind[rival])
    names = f'{", ".join(left[:-1])} or {left[-1]}'
    lead = (
        f'Cannot tell whether {names} is best: a difference of up to {possible} is possible '
        f'between {first} and {rival}, and {_needed(question, first, rival)} would decide. Until '
        f'then the choice is {first}, the cheapest of them'
    )
    return first, False, lead


def _needed(question: Question, arm: str, rival: str) -> str:
    """How many seeds or test examples would decide between two arms, if their means stay."""
    pair = next(p for p in question.pairs if {p.first, p.second} == {arm, rival})
    ahead, parts = question.metric.better(pair.against(arm)[1].mean), pair.parts
    # The interval must show either that `arm` is close enough, or that the other one is better.
    target = max(question.tolerance - ahead, ahead)
    level = 1 - (1 - LEVEL) / len(question.pairs)

    def decides(seeds: int, examples: int) -> bool:
        return bool(_expected(parts, seeds, examples).banerjee(level) <= target)

    more_seeds = range(parts.seeds + 1, MOST_SEEDS)
    seeds = next((n for n in more_seeds if decides(n, parts.examples)), 0)
    more_examples = np.geomspace(parts.examples, MOST_EXAMPLES, 400).astype(int).tolist()
    examples = next((n for n in more_examples if decides(parts.seeds, n)), 0)
    counts = [f'{_rounded(seeds)} seeds'] * bool(seeds)
    counts += [f'{_rounded(examples)} test examples'] * bool(examples)
    if not counts:
        return 'only more seeds and more test examples together'
    return 'about ' + ' or '.join(counts)


def _expected(parts: Parts, seeds: int, examples: int) -> Parts:
    """The variance that is expected with other numbers of seeds and examples."""
    noise = parts.noise * parts.seeds * parts.examples / (seeds * examples)
    seed = max(parts.seed - parts.noise, 0.0) * parts.seeds / seeds
    shared = parts.shared * parts.examples / examples
    return Parts(parts.mean, seed + noise, shared + noise, noise, seeds, examples)


def _rounded(count: int) -> str:
    """A count, rounded up to two significant digits."""
    unit = 10 ** max(len(str(count)) - 2, 0)
    return f'{-(-count // unit) * unit:,}'


def _clause(pair: Pair, question: Question) -> str:
    """The difference of a pair in words."""
    metric, d = question.metric, pair.difference
    if pair.differs:
        word = 'above' if d.mean > 0 else 'below'
        low, high = map(metric.text, sorted((abs(d.low), abs(d.high))))
        distance = _amount(metric, abs(d.mean))
        return f'{pair.first} is {distance} {word} {pair.second} (95% interval {low} to {high})'
    mean, low, high = (metric.text(x, '+') for x in (d.mean, d.low, d.high))
    numbers = f'{mean}{_unit(metric)}, 95% interval {low} to {high}'
    if pair.differs is None:
        return f'{pair.first} - {pair.second}: {numbers}'
    if d.low > 0 or d.high < 0:
        numbers += f'; p, corrected for all pairs, is {pair.p:.2g}'
    return f'no measurable difference between {pair.first} and {pair.second} ({numbers})'


def _amount(metric: Metric, value: float) -> str:
    return metric.text(value) + _unit(metric)


def _unit(metric: Metric) -> str:
    return ' points' if metric.percent else f' of {metric.name}'
