"""JSON files of other programs: fields by type, and one line for whatever is wrong with a file."""

import os

import pytest

from jaxtrain import json_file
from jaxtrain.errors import UserError


def fault(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def record(tmp_path, text: str) -> json_file.Record:
    (tmp_path / 'config.json').write_text(text)
    result = json_file.read(tmp_path / 'config.json')
    assert result is not None
    return result


def test_fields_by_type(tmp_path):
    text = '{"s": "a", "i": 4, "f": 4.0, "b": true, "n": null, "l": [1, 2.5], "o": {"t": ["x"]}}'
    found = record(tmp_path, text)
    assert found.text('s') == 'a' and found.flag('b') is True and 's' in found
    assert found.integer('i') == found.integer('f') == 4 and found.number('i') == 4.0
    assert found.numbers('l') == (1.0, 2.5) and found.record('o').texts('t') == ('x',)
    assert found.text('none', 'usual') == 'usual' and found.integer('n', None) is None


@pytest.mark.parametrize(
    ('call', 'key', 'kind'),
    [
        ('text', 'i', 'a string'), ('integer', 's', 'an integer'), ('integer', 'h', 'an integer'),
        ('integer', 'b', 'an integer'), ('number', 's', 'a number'), ('flag', 'i', 'true or false'),
        ('numbers', 'l', 'a list of numbers'), ('numbers', 'n', 'a list of numbers'),
        ('texts', 's', 'a list of strings'), ('record', 'l', 'an object'), ('text', 'x', 'missing'),
    ],
)  # fmt: skip
def test_a_wrong_type_is_named_with_file_and_key(call, key, kind, tmp_path):
    text = '{"o": {"s": "a", "i": 1, "h": 1.5, "b": false, "n": null, "l": [1, "a"]}}'
    inner = record(tmp_path, text).record('o')
    message = fault(getattr(inner, call), key)
    assert f'config.json: o.{key}' in message and kind in message


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', 'not valid JSON'), (b'{"a": 1', 'not valid JSON'), (b'\xff\xfe{}', 'not valid JSON'),
        (b'{"a": NaN}', 'NaN'), (b'{"a": -Infinity}', '-Infinity'), (b'{"a": {"b": 1e999}}', 'a.b'),
        (b'{"a": ["\\ud800"]}', 'a.0'), (b'{"\\ud800": 1}', 'surrogate'),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"), (b'[' * 100_000, 'too deep'),
        (b'\0' * 8, 'JSON'),
        (b'[]', 'not a list'), (b'null', 'not null'), (b'3', 'not a number'),
        (b'{"a": ' + b'9' * 5000 + b'}', 'not valid JSON'),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(content, words, tmp_path):
    (tmp_path / 'config.json').write_bytes(content)
    message = fault(json_file.read, tmp_path / 'config.json')
    assert str(tmp_path / 'config.json') in message and words in message


def test_what_is_not_a_file(tmp_path):
    assert json_file.read(tmp_path / 'none.json') is None
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'link').symlink_to('nowhere')
    for name in ('pipe', '.', 'link'):
        assert str(tmp_path / name) in fault(json_file.read, tmp_path / name)


def test_a_list_of_objects(tmp_path):
    (tmp_path / 'modules.json').write_text('[{"type": "A"}, {"type": 3}]')
    first, second = json_file.read_list(tmp_path / 'modules.json')
    assert first.text('type') == 'A' and '1.type' in fault(second.text, 'type')
    (tmp_path / 'modules.json').write_text('[3]')
    assert 'list of JSON objects' in fault(json_file.read_list, tmp_path / 'modules.json')
