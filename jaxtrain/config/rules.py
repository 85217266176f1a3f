"""Path rules: a `(regex, value)` list, and one way to apply it, for every per-parameter setting.

A rule matches a path if its regex matches the *whole* path; the first rule that matches applies.
Every path must be matched, and every rule must apply to a path; only a final `.*`, which means
"everything else", may apply to none. Freezing, learning-rate factors, weight decay, schedules,
clipping, sharding and restoring all use `assign`.
"""

import re
from collections.abc import Iterable
from typing import Any

from jaxtrain.errors import UserError, nearest

Rules = tuple[tuple[str, Any], ...]

EVERYTHING = '.*'


def parse(value: Any, where: str, kind: type | tuple[type, ...]) -> Rules:
    """Checks a config value that is a rule list; one bare value stands for `(('.*', value),)`.

    Args:
      value: the tuple from the config.
      where: the config key, for messages.
      kind: the type that every rule's value must have.

    Raises:
      UserError: a malformed rule list, a value of another type, or an invalid regex.
    """
    if len(value) == 1 and isinstance(value[0], kind):
        value = ((EVERYTHING, value[0]),)
    if len(value) == 2 and isinstance(value[0], str) and not isinstance(value[1], tuple | list):
        value = (tuple(value),)  # one rule, written without the outer tuple
    if not value:
        raise UserError(f'{where} is empty; write at least (({EVERYTHING!r}, VALUE),)')
    rules = []
    for rule in value:
        if not isinstance(rule, tuple | list) or len(rule) != 2 or not isinstance(rule[0], str):
            raise UserError(f'{where}: {rule!r} is not a rule; write (regex, value)')
        pattern, setting = rule
        if not isinstance(setting, kind) or isinstance(setting, bool):
            raise UserError(
                f'{where}: the value of rule {pattern!r} is {setting!r}, not a {_name(kind)}'
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f'{where}: {pattern!r} is not a regular expression: {error}') from error
        rules.append((pattern, setting))
    return tuple(rules)


def assign(rules: Rules, paths: Iterable[str], where: str) -> dict[str, Any]:
    """Maps each path to the value of the first rule that matches it.

    Args:
      rules: the result of `parse`.
      paths: all paths, each of which must be matched.
      where: the config key, for messages.

    Raises:
      UserError: a path that no rule matches, or a rule that applies to no path.
    """
    paths = list(paths)
    values: dict[str, Any] = {}
    winners = set()
    for path in paths:
        number = winner(rules, path)
        if number is not None:
            values[path] = rules[number][1]
            winners.add(number)
    for number, (pattern, _) in enumerate(rules):
        last_resort = number == len(rules) - 1 and pattern == EVERYTHING
        if number not in winners and not last_resort:
            raise UserError(_idle(pattern, paths, where))
    uncovered = [path for path in paths if path not in values]
    if uncovered:
        raise UserError(
            f'{where}: no rule matches {_some(uncovered)}; '
            f'add a rule, or end the list with ({EVERYTHING!r}, VALUE)'
        )
    return values


def winner(rules: Rules, path: str) -> int | None:
    """Returns the index of the first rule that matches a path, or None."""
    return next((i for i, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, path)), None)


def _idle(pattern: str, paths: list[str], where: str) -> str:
    if any(re.fullmatch(pattern, path) for path in paths):
        return (
            f'{where}: rule {pattern!r} never applies, since earlier rules match all its paths; '
            'move it up'
        )
    for wider in (f'{pattern}/.*', f'{pattern}.*', f'.*{pattern}.*'):
        if any(re.fullmatch(wider, path) for path in paths):
            hint = f' (a rule must match the whole path; did you mean {wider!r}?)'
            break
    else:
        prefixes = {'/'.join(path.split('/')[:n]) for path in paths for n in range(1, 6)}
        stem = pattern.removesuffix('/.*')
        known = prefixes if stem == pattern else [f'{prefix}/.*' for prefix in prefixes]
        hint = nearest(pattern, known)
    return f'{where}: rule {pattern!r} matches nothing{hint}; the paths are {_some(paths)}'


def _some(paths: list[str], most: int = 3) -> str:
    rest = f' and {len(paths) - most} more' if len(paths) > most else ''
    return ', '.join(paths[:most]) + rest


def _name(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return 'number' if float in kinds else kinds[0].__name__
