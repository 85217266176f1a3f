"""Lists of examples: CSV (RFC 4180, with a header) or JSON Lines, a line an example.

A line has what the example is (`path` of an image, or `text`), its `label`, and perhaps `split`.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jaxtrain.config import nearest
from jaxtrain.errors import UserError

SUFFIXES = ('.csv', '.jsonl')


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
      line: its number in the file, from 1; of a CSV record over several, the last.
      content: the path or the text.
      label: the class, '' where none is read.
      split: the split if it names one.
    """

    line: int
    content: str
    label: str
    split: str | None


def read_list(
    file: str, column: str, labelled: bool = True, key: str = 'config.data.path'
) -> list[Row]:
    """All lines of a list.

    Args:
      file: a .csv or .jsonl file.
      column: what holds the content of an example, 'path' or 'text'.
      labelled: whether a line must have a label.
      key: what names the file, for messages.

    Raises:
      UserError: not a readable CSV or JSONL file in UTF-8, no lines, or one that is malformed.
    """
    text = _text(file, key)
    kind = os.path.splitext(file)[1].lower()
    wanted = (column, 'label') if labelled else (column,)
    rows: list[Row] = []
    for line, fields in (_csv if kind == '.csv' else _jsonl)(file, text, wanted):
        row = _row(file, line, fields, column, labelled)
        if rows and (row.split is None) != (rows[0].split is None):
            raise UserError(f'{file}, line {line}: give a split in every line, or in none')
        rows.append(row)
    if not rows:
        raise UserError(
            f'{file} is empty; give a line with {" and ".join(wanted)} for each example'
        )
    return rows


def file_of_split(folder: str, split: str, key: str, suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """The file SPLIT.csv or the like in a folder. UserError if there is none, or more than one."""
    names = sorted(n for n in os.listdir(folder) if os.path.splitext(n)[1].lower() in suffixes)
    fit = [name for name in names if os.path.splitext(name)[0] == split]
    if len(fit) > 1:
        raise UserError(f'{folder} has both {" and ".join(fit)}; remove one of them')
    if not fit:
        splits = [os.path.splitext(name)[0] for name in names]
        wanted = ' or '.join(split + suffix for suffix in suffixes)
        raise UserError(
            f'{key}={split!r}: {folder} has no {wanted}{nearest(split, splits)}; it has '
            f'{", ".join(names) or "none for any split"}'
        )
    return os.path.join(folder, fit[0])


def of_split(rows: list[Row], split: str, key: str, file: str, whole: bool) -> list[Row]:
    """The rows of a split; in a file for one split alone (not `whole`) there must be no others."""
    found = [row for row in rows if row.split in (split, None)]
    others = sorted({row.split for row in rows} - {split, None})
    if not whole and others:
        raise UserError(f'{file} has lines of the split {others[0]!r}; move them to their own file')
    if not found:
        raise UserError(
            f'{key}={split!r}: no line of {file} has that split{nearest(split, others)}; it has '
            f'{", ".join(others)}'
        )
    return found


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of labels: as numbers if all of them are."""
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def _text(file: str, key: str) -> str:
    if os.path.splitext(file)[1].lower() not in SUFFIXES:
        raise UserError(
            f'{key}: {file} is not a list of examples; name a file that ends in '
            f'{" or ".join(SUFFIXES)}, or a folder with one for each split'
        )
    try:
        with open(file, encoding='utf-8-sig', newline='') as opened:
            return opened.read()
    except OSError as error:
        raise UserError(
            f'{key}: {file} cannot be read ({error.strerror}); name a list of examples'
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f'{file} is not UTF-8 (byte {error.start}); save it as UTF-8') from error


def _csv(file: str, text: str, wanted: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    # Some fields, being whole texts, are longer than the module's usual limit.
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text, newline=''), skipinitialspace=True, strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        for name in wanted:
            if text.strip() and columns.count(name) != 1:
                raise UserError(
                    f'{file}: its first line must name the columns {" and ".join(wanted)}, '
                    f'separated by commas, once each; it has {", ".join(columns)}'
                )
        for fields in reader:
            if None in fields or None in fields.values():
                raise UserError(
                    f'{file}, line {reader.line_num}: it has not the {len(columns)} fields of the '
                    'first line; put fields with a comma in quotes'
                )
            yield reader.line_num, fields
    except csv.Error as error:
        line = reader.line_num + 1  # the last one that was whole is counted
        raise UserError(f'{file}, line {line}: {error}; mend the line') from error


def _jsonl(file: str, text: str, wanted: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    for line, words in enumerate(text.split('\n'), 1):
        if not words.strip():
            continue
        try:
            fields = json.loads(words)
        except (ValueError, RecursionError) as error:
            raise UserError(f'{file}, line {line}: it is not JSON ({error}); mend it') from error
        if not isinstance(fields, dict) or not set(wanted) <= set(fields):
            has = ', '.join(fields) or 'none' if isinstance(fields, dict) else 'no keys'
            raise UserError(
                f'{file}, line {line}: it must be an object with {" and ".join(wanted)}; it has '
                f'{has}'
            )
        yield line, fields


def _row(file: str, line: int, fields: dict, column: str, labelled: bool) -> Row:
    names = (column, 'label', 'split') if labelled else (column,)
    words = {name: fields[name] for name in names if name in fields}
    if type(words.get('label')) is int:
        words['label'] = str(words['label'])
    for name, word in words.items():
        if not isinstance(word, str) or not word.strip():
            kinds = {'label': 'a name or an integer', 'text': 'some text'}
            raise UserError(
                f'{file}, line {line}: {name} is {word!r}; give {kinds.get(name, "a name")}'
            )
    split = words['split'].strip() if 'split' in words else None
    return Row(line, words[column], words['label'].strip() if labelled else '', split)
