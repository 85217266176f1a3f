"""Path rules: which rule applies, and the errors of rule lists that do not fit the paths."""

import pytest

from jaxtrain.config.rules import assign, parse, winner
from jaxtrain.errors import UserError

PATHS = [
    'backbone/conv_0/kernel',
    'backbone/conv_1/kernel',
    'backbone/norm_0/scale',
    'head/logits/bias',
    'head/logits/kernel',
]
NUMBER = (int, float)


def fault(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def test_first_match_wins():
    rules = (('backbone/conv_0/.*', 'a'), ('backbone/.*', 'b'), ('.*', 'c'))
    assert list(assign(rules, PATHS, 'here').values()) == ['a', 'b', 'b', 'c', 'c']
    assert [winner(rules, path) for path in PATHS] == [0, 1, 1, 2, 2]


def test_the_order_of_rules_decides_and_not_their_length():
    rules = (('.*/kernel', 1), ('backbone/.*', 2), ('.*', 3))
    assert list(assign(rules, PATHS, 'here').values()) == [1, 1, 2, 3, 1]


def test_a_rule_matches_the_whole_path():
    assert winner((('head', 1),), 'head/logits/bias') is None
    assert winner((('kernel', 1),), 'head/logits/kernel') is None
    assert winner((('head/.*/bias', 1),), 'head/logits/bias') == 0


def test_uncovered_path_is_named_with_the_fix():
    message = fault(assign, (('backbone/.*', 1),), PATHS, 'config.groups')
    assert message.startswith('config.groups: no rule matches head/logits/bias, head/logits/kernel')
    assert "end the list with ('.*', VALUE)" in message


def test_long_lists_of_uncovered_paths_are_truncated():
    message = fault(assign, (('head/logits/bias', 1),), PATHS, 'here')
    assert 'backbone/norm_0/scale and 1 more;' in message


@pytest.mark.parametrize(
    ('pattern', 'hint'),
    [
        ('backbone/conv_0/kernal', "'backbone/conv_0/kernel'"),  # a typo in the last name
        ('bakbone/.*', "'backbone/.*'"),  # and in the first
        ('backbone', "'backbone/.*'"),  # a module instead of its leaves
        ('backbone/conv', "'backbone/conv.*'"),
        ('logits', "'.*logits.*'"),
    ],
)
def test_a_rule_that_matches_nothing_suggests_one_that_does(pattern, hint):
    message = fault(assign, ((pattern, 1), ('.*', 2)), PATHS, 'here')
    assert f'here: rule {pattern!r} matches nothing' in message
    assert f'did you mean {hint}?' in message
    assert 'the paths are backbone/conv_0/kernel, ' in message
    hinted = hint.strip("'")
    assert any(winner(((hinted, 1),), path) == 0 for path in PATHS)


def test_no_hint_if_no_path_is_similar():
    assert 'did you mean' not in fault(assign, (('xyz', 1), ('.*', 2)), PATHS, 'here')


def test_a_shadowed_rule_must_move_up():
    message = fault(assign, (('head/.*', 1), ('head/logits/bias', 2), ('.*', 3)), PATHS, 'here')
    assert "rule 'head/logits/bias' never applies" in message
    assert 'move it up' in message


def test_a_final_catch_all_may_match_nothing():
    rules = (('backbone/.*', 1), ('head/.*', 2), ('.*', 3))
    assert set(assign(rules, PATHS, 'here').values()) == {1, 2}


def test_a_catch_all_that_is_not_last_is_not_exempt():
    rules = (('backbone/.*', 1), ('head/.*', 2), ('.*', 3), ('.*', 4))
    assert "rule '.*' never applies" in fault(assign, rules, PATHS, 'here')


@pytest.mark.parametrize(
    ('value', 'kind', 'rules'),
    [
        ((1.5,), NUMBER, (('.*', 1.5),)),
        (('cosine',), str, (('.*', 'cosine'),)),
        (('head/.*', 2), NUMBER, (('head/.*', 2),)),
        (('head/.*', 'frozen'), str, (('head/.*', 'frozen'),)),
        ((('a', 1), ('b', 2)), NUMBER, (('a', 1), ('b', 2))),
        ((['a', 1],), NUMBER, (('a', 1),)),
        ((('a', 'x'), ('b', 'y')), str, (('a', 'x'), ('b', 'y'))),
    ],
)
def test_forms_of_a_rule_list(value, kind, rules):
    assert parse(value, 'here', kind) == rules


@pytest.mark.parametrize(
    ('value', 'kind', 'words'),
    [
        ((), str, ['here is empty', "('.*', VALUE)"]),
        ((('a(', 1),), NUMBER, ["'a(' is not a regular expression", 'unterminated']),
        ((('a', 'x'),), NUMBER, ["rule 'a' is 'x', not a number"]),
        ((('a', 1),), str, ["rule 'a' is 1, not a str"]),
        ((('a', True),), NUMBER, ["rule 'a' is True, not a number"]),
        ((('a', 1, 2),), NUMBER, ["('a', 1, 2) is not a rule", 'write (regex, value)']),
        (((1, 2),), NUMBER, ['(1, 2) is not a rule']),
        (('a', 'b', 'c'), str, ["'a' is not a rule"]),
        ((True,), NUMBER, ['is True, not a number']),
        (('head/.*', 'x'), NUMBER, ["rule 'head/.*' is 'x', not a number"]),
    ],
)
def test_malformed_rule_lists(value, kind, words):
    message = fault(parse, value, 'here', kind)
    assert all(word in message for word in words), message
    assert '\n' not in message
