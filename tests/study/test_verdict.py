"""The rule of a comparison's verdict, and its words."""

import re
from dataclasses import replace

import numpy as np
import pytest

from jaxtrain.runs.metric import Metric
from jaxtrain.study.pairs import Pair, pairs_of
from jaxtrain.study.stats import Interval, Parts
from jaxtrain.study.verdict import Question, rule, verdict

ACCURACY = Metric('accuracy', higher_is_better=True, percent=True)
ERROR = Metric('error', higher_is_better=False)


def pair(first: str, second: str, mean: float, half: float) -> Pair:
    differs = abs(mean) > half
    parts = Parts(mean, (half / 12) ** 2, (half / 4) ** 2, (half / 14) ** 2, 5, 500)
    interval = Interval(mean, mean - half, mean + half)
    return Pair(first, second, interval, 0.01 if differs else 0.5, differs, parts)


def question(*pairs: Pair, metric=ACCURACY, seeds=5, examples=500, **costs: float) -> Question:
    return Question(metric, 0.01, costs, list(pairs), seeds, examples)


def test_the_only_arm_that_no_other_beats_is_taken():
    result = verdict(question(pair('b', 'a', 0.05, 0.03), a=1, b=9))
    assert (result.choice, result.decided) == ('b', True)
    assert result.text.startswith('b is the arm to take: every other arm is measurably worse. ')
    assert 'b is 5.0 points above a (95% interval 2.0 to 8.0)' in result.text


@pytest.mark.parametrize(('mean', 'choice'), [(0.002, 'a'), (-0.002, 'a')])
def test_the_cheapest_within_the_tolerance_is_taken(mean, choice):
    result = verdict(question(pair('b', 'a', mean, 0.005), a=1, b=2))
    assert (result.choice, result.decided) == (choice, True)
    assert 'a is the arm to take: the cheapest within 1.0 points of the best. ' in result.text


def test_a_measurably_worse_arm_within_the_tolerance_is_taken_if_it_is_cheaper():
    result = verdict(question(pair('b', 'a', 0.006, 0.003), a=1, b=2))
    assert (result.choice, result.decided) == ('a', True)
    assert verdict(question(pair('b', 'a', 0.006, 0.003), a=2, b=1)).choice == 'b'


def test_of_arms_that_cost_the_same_the_first_is_taken():
    assert verdict(question(pair('b', 'a', 0.001, 0.005), a=1, b=1)).choice == 'a'
    assert verdict(question(pair('a', 'b', 0.001, 0.005), b=1, a=1)).choice == 'b'


def test_it_cannot_tell_where_the_interval_spans_more_than_the_tolerance():
    result = verdict(question(pair('b', 'a', 0.01, 0.035), a=2, b=1))
    assert (result.choice, result.decided) == ('b', False)
    # b, the cheaper one, may be 2.5 points behind a.
    assert 'Cannot tell whether b or a is best' in result.text
    assert 'up to 2.5 points is possible between b and a' in result.text
    assert re.search(r'about [\d,]+ seeds or [\d,]+ test examples would decide', result.text)
    assert 'Until then the choice is b, the cheapest' in result.text
    assert 'no measurable difference between b and a (+1.0 points, 95% interval -2.5 to +4.5)' in (
        result.text
    )


def test_arms_that_are_ruled_out_are_not_chosen_though_cheaper():
    result = verdict(
        question(
            pair('b', 'a', 0.2, 0.05),
            pair('c', 'a', 0.21, 0.05),
            pair('c', 'b', 0.01, 0.05),
            a=1,
            b=2,
            c=3,
        )  # fmt: skip
    )
    assert (result.choice, result.decided) == ('b', False)
    assert 'Cannot tell whether b or c is best' in result.text


def test_a_pair_that_only_the_correction_makes_equal_has_its_p():
    corrected = replace(pair('b', 'a', -0.05, 0.04), p=0.07, differs=False)
    text = verdict(question(corrected, a=1, b=1)).text
    assert 'no measurable difference between b and a (-5.0 points' in text and '0.07' in text
    equal = replace(pair('b', 'a', 0.01, 0.04), p=0.07)
    assert '0.07' not in verdict(question(equal, a=1, b=1)).text


def test_less_is_better_for_an_error():
    result = verdict(question(pair('b', 'a', -0.05, 0.03), metric=ERROR, a=1, b=2))
    assert result.choice == 'b' and 'b is 0.05 of error below a' in result.text
    result = verdict(question(pair('b', 'a', 0.05, 0.03), metric=ERROR, a=2, b=1))
    assert result.choice == 'a' and result.decided and 'points' not in result.text


def test_two_seeds_are_warned_of():
    assert 'two seeds' in verdict(question(pair('b', 'a', 0.2, 0.1), seeds=2, a=1, b=2)).text
    assert 'two seeds' not in verdict(question(pair('b', 'a', 0.2, 0.1), seeds=3, a=1, b=2)).text


@pytest.mark.parametrize(
    ('seeds', 'examples', 'words'),
    [
        (1, 2000, 'One seed gives no verdict on the arms'),
        (5, 4, 'Too few test examples for a verdict on the arms: 4'),
    ],
)
def test_no_verdict(seeds, examples, words):
    scores = {'a': np.zeros((seeds, examples)), 'b': np.ones((seeds, examples))}
    pairs = pairs_of(scores, ACCURACY)
    result = verdict(question(*pairs, seeds=seeds, examples=examples, a=1, b=2))
    assert (result.choice, result.decided) == (None, False)
    assert result.text.startswith(words) and 'b - a: +100.0 points' in result.text
    assert 'arm to take' not in result.text and 'measurabl' not in result.text


def test_the_proposed_number_of_seeds_or_examples_decides():
    """Simulated again with that many, a difference of three points is measured."""
    rng = np.random.default_rng(0)

    def simulate(seeds: int, examples: int) -> Question:
        chances = {'a': 0.8, 'b': 0.83}
        scores = {
            name: (rng.random((seeds, examples)) < c + 0.005 * rng.normal(size=(seeds, 1))) * 1.0
            for name, c in chances.items()
        }
        return question(*pairs_of(scores, ACCURACY), seeds=seeds, examples=examples, a=1, b=2)

    asked, decided = 0, 0
    for _ in range(24):
        result = verdict(simulate(4, 300))
        match = re.search(r'about (\d+) seeds', result.text)
        if match:
            asked += 1
            decided += verdict(simulate(int(match[1]), 300)).decided
    assert asked > 8 and decided / asked > 0.5


def test_many_arms_are_not_all_worded():
    rng = np.random.default_rng(1)
    scores = {f'arm{i}': (rng.random((3, 100)) < 0.5 + 0.04 * i) * 1.0 for i in range(8)}
    costs = {name: 1.0 for name in scores}
    result = verdict(question(*pairs_of(scores, ACCURACY), seeds=3, examples=100, **costs))
    assert result.text.count('95% interval') == 7 and '21 more differences' in result.text


def test_the_rule_names_tolerance_correction_and_limits():
    for part in ('1.0 points', 'config.compare.tolerance', 'Holm', '20 test examples'):
        assert part in rule(ACCURACY, 0.01)
    assert '0.01 of error' in rule(ERROR, 0.01)
