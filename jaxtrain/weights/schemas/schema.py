"""Schemas of the files beside weights: every field is computed, without effect, or refused.

Shapes do not show all that a network computes: the number of heads, an eps, a pooling. The files
beside the weights state it. A schema lists every field of such a file, and `Given.read` refuses a
file with a field that the schema does not have, or with a value that needs something else.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtrain import json_file
from jaxtrain.errors import UserError, nearest
from jaxtrain.json_file import Record


@dataclass(frozen=True)
class Computed:
    """A field that the name map reads; it raises a UserError for values that it cannot compute."""


@dataclass(frozen=True)
class NoEffect:
    """A field that does not change what the weights compute.

    Attributes:
      reason: why not.
    """

    reason: str


@dataclass(frozen=True)
class Only:
    """A field whose other values are refused.

    Attributes:
      values: the values that are supported, the usual one first.
      needs: what any other value would need.
    """

    values: tuple[Any, ...]
    needs: str


Schema = Mapping[str, Computed | NoEffect | Only]


def computed(*names: str) -> dict[str, Computed]:
    return dict.fromkeys(names, Computed())


def no_effect(reason: str, *names: str) -> dict[str, NoEffect]:
    return dict.fromkeys(names, NoEffect(reason))


@dataclass(frozen=True)
class Given:
    """What the user states about weights, beside their files.

    Attributes:
      fields: field -> value, as JSON or plain text, of files that do not state it.
      allowed: fields that are accepted although a schema refuses them.
      flags: names of the two flags or config keys, for messages.
      used: the fields of both kinds that a file or schema has; `read` adds to it.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    allowed: tuple[str, ...] = ()
    flags: tuple[str, str] = ('--field', '--allow-field')
    used: set[str] = field(default_factory=set, compare=False)

    def read(self, path: Path, schema: Schema) -> Record:
        """Read a file beside weights, and check it.

        Args:
          path: the file. If it does not exist, it has the fields that the user states.
          schema: the schema of the file.

        Raises:
          UserError: the file is damaged, states another value than the user, or has a field or
            value that is refused.
        """
        written = json_file.read(path) or Record(str(path), {})
        record = self.complete(written, schema)
        return self.check(record, schema)

    def complete(self, record: Record, schema: Schema) -> Record:
        """Add the fields that the user states and a schema has. UserError for another value."""
        added = {}
        for name, text in self.fields.items():
            key = name.removeprefix(record.prefix)
            if not name.startswith(record.prefix) or key not in schema:
                continue
            value = _value(text)
            if key in record.values and record.values[key] != value:
                raise UserError(
                    f'{self.flags[0]}: {name}={text}, but {record.at(key)}; omit the flag, or '
                    'correct the file'
                )
            added[key] = value
            self.used.add(name)
        return Record(record.where, {**record.values, **added}, record.prefix)

    def check(self, record: Record, schema: Schema) -> Record:
        """Return a record without the fields that the user allows although the schema refuses them.

        Raises:
          UserError: the schema refuses another of its fields.
        """
        refused = set()
        known = [name for name in schema if name in record]
        for name in (*known, *(name for name in record.values if name not in schema)):
            if not (fault := _fault(record, name, schema)):
                continue
            full = record.prefix + name
            if full not in self.allowed:
                raise UserError(
                    f'{fault}; {self.flags[1]}={full} imports the weights as if it were absent'
                )
            self.used.add(full)
            refused.add(name)
        rest = {name: value for name, value in record.values.items() if name not in refused}
        return Record(record.where, rest, record.prefix)

    @property
    def accepted(self) -> tuple[str, ...]:
        """The fields that were accepted although a schema refuses them."""
        return tuple(name for name in self.allowed if name in self.used)

    def check_used(self) -> None:
        """Raise a UserError if the user states something that no file or schema has."""
        for name in self.fields:
            if name not in self.used:
                raise UserError(f'{self.flags[0]}={name}: these weights have no such field')
        for name in self.allowed:
            if name not in self.used:
                raise UserError(
                    f'{self.flags[1]}={name}: no file of these weights has a field of that name '
                    'that is refused; omit it'
                )


def assumptions(record: Record, usual: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence on the values that are assumed for fields of a file; () if it has them.

    Args:
      record: the file.
      usual: field -> the value that is assumed.
    """
    missing = {name: value for name, value in usual.items() if name not in record}
    if not missing:
        return ()
    values = ', '.join(f'{name}={json_file.shown(value)}' for name, value in missing.items())
    return (f'{values} ({record.name}; --field=NAME=VALUE states another value)',)


def make_given(fields: Iterable[str], allowed: Iterable[str], flags: tuple[str, str]) -> Given:
    """Make a `Given` of texts NAME=VALUE and of names. UserError if a text has another form."""
    pairs = {}
    for text in fields:
        name, equals, value = text.partition('=')
        if not (name and equals):
            raise UserError(
                f'{flags[0]}={text} should be NAME=VALUE, such as num_attention_heads=4'
            )
        pairs[name] = value
    return Given(pairs, tuple(allowed), flags)


def _fault(record: Record, name: str, schema: Schema) -> str:
    """Return why a field is refused, '' if it is not."""
    rule = schema.get(name)
    if rule is None:
        return f'{record.at(name)} is not a field that is known{nearest(name, schema)}'
    if not isinstance(rule, Only) or record.values[name] in rule.values:
        return ''
    supported = ' or '.join(json_file.shown(value) for value in rule.values[:4])
    return f'{record.at(name)} is not supported, only {supported}: it needs {rule.needs}'


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
