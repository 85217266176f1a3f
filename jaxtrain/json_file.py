"""JSON files that other programs wrote: their fields by type, with errors of one line.

A file is one object, `read`, or a list of objects, `read_list`. The getters of a `Record` raise a
UserError that names the file, the field and the type that it should have. A field that is missing
has the default of the call; null counts as missing only where the default is None.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jaxtrain.errors import UserError

_REQUIRED: Any = object()
Json = Any  # what `json.loads` returns


@dataclass(frozen=True)
class Record:
    """An object in a JSON file.

    Attributes:
      where: the file, for messages.
      values: its fields.
      prefix: the fields that lead to the object, each followed by a dot.
    """

    where: str
    values: Mapping[str, Json]
    prefix: str = ''

    def __contains__(self, key: str) -> bool:
        return key in self.values

    @property
    def name(self) -> str:
        """The name of the file, without its folder."""
        return self.where.rpartition('/')[2]

    def at(self, key: str) -> str:
        """'FILE: FIELD=VALUE', which begins a message; without a value if there is no such field"""
        value = f'={shown(self.values[key])}' if key in self.values else ''
        return f'{self.where}: {self.prefix}{key}{value}'

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._get(key, default, 'a string', lambda x: isinstance(x, str))

    def integer(self, key: str, default: Any = _REQUIRED) -> Any:
        """An int; a float without a fraction, such as 4.0, counts as one."""
        value = self._get(key, default, 'an integer', lambda x: is_number(x) and x == int(x))
        return int(value) if key in self.values and value is not None else value

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """A float; integers count too."""
        value = self._get(key, default, 'a number', is_number)
        return float(value) if key in self.values and value is not None else value

    def flag(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._get(key, default, 'true or false', lambda x: isinstance(x, bool))

    def numbers(self, key: str, default: Any = _REQUIRED) -> Any:
        """A tuple of floats."""
        return self._list(key, default, 'a list of numbers', is_number, float)

    def texts(self, key: str, default: Any = _REQUIRED) -> Any:
        """A tuple of strings."""
        return self._list(key, default, 'a list of strings', lambda x: isinstance(x, str), str)

    def record(self, key: str, default: Any = _REQUIRED) -> Any:
        """The Record in a field, whose fields are named after it: `outer.inner`."""
        value = self._get(key, default, 'an object', lambda x: isinstance(x, dict))
        if isinstance(value, dict):
            return Record(self.where, value, f'{self.prefix}{key}.')
        return value

    def _list(self, key: str, default: Any, kind: str, is_item: Any, convert: Any) -> Any:
        value = self._get(
            key, default, kind, lambda x: isinstance(x, list) and all(map(is_item, x))
        )
        return tuple(map(convert, value)) if isinstance(value, list) else value

    def _get(self, key: str, default: Any, kind: str, accepts: Any) -> Any:
        if key not in self.values or (self.values[key] is None and default is None):
            if default is _REQUIRED:
                raise UserError(f'{self.at(key)} is missing; it should be {kind}')
            return default
        if not accepts(self.values[key]):
            raise UserError(f'{self.at(key)} should be {kind}; correct the file')
        return self.values[key]


def read(path: Path) -> Record | None:
    """Read a file that holds one object; None if it does not exist. UserError if it is damaged."""
    content = _read(path)
    if content is None:
        return None
    return parse(content, str(path))


def read_list(path: Path) -> tuple[Record, ...] | None:
    """Read a file that holds a list of objects; None if it does not exist. UserError as `read`."""
    content = _read(path)
    if content is None:
        return None
    value = _value(content, str(path))
    if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
        raise UserError(f'{path} should hold a list of JSON objects; download it again')
    return tuple(Record(str(path), x, f'{i}.') for i, x in enumerate(value))


def parse(content: bytes | str, where: str) -> Record:
    """Parse the text of one object. UserError, which begins with `where`, if it is damaged."""
    value = _value(content, where)
    if not isinstance(value, dict):
        raise UserError(f'{where} should hold a JSON object, not {_kind(value)}; download it again')
    return Record(where, value)


def is_number(value: Json) -> bool:
    """Whether a value is an int or a float."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: Json) -> str:
    """A value as in the file, shortened to 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _read(path: Path) -> bytes | None:
    try:
        if not os.path.lexists(path):
            return None
        # A pipe would never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f'{path} is not a file; replace it with the JSON file, or remove it')
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f'{path} cannot be read ({error.strerror or error}); download it again, or check its '
            'permissions'
        ) from error


def _value(content: bytes | str, where: str) -> Json:
    try:
        text = content if isinstance(content, str) else content.decode('utf-8-sig')
        value = json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_no_number)
        _check(value, '')
    except RecursionError as error:
        raise UserError(f'{where} is nested too deeply; download it again') from error
    except ValueError as error:
        reason = ' '.join(str(error).split())[:150]
        raise UserError(f'{where} is not valid JSON ({reason}); download it again') from error
    return value


def _without_repetition(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the field {ascii(repeated)} occurs twice')
    return result


def _no_number(text: str) -> NoReturn:
    raise ValueError(f'{text} is no JSON number')


def _check(value: Json, key: str) -> None:
    """Raise a ValueError if a value is no finite number, or a text that cannot be encoded."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{key} is too large a number')
    if isinstance(value, str):
        _check_text(value, key)
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_text(name, key)
            _check(inner, f'{key}.{name}' if key else name)
    if isinstance(value, list):
        for number, inner in enumerate(value):
            _check(inner, f'{key}.{number}' if key else str(number))


def _check_text(text: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f'{key or ascii(text)} has a lone surrogate, {ascii(text)}') from None


def _kind(value: Json) -> str:
    names = {dict: 'an object', list: 'a list', str: 'a string', bool: 'true or false'}
    return 'null' if value is None else names.get(type(value), 'a number')
