"""Lists of examples in CSV (RFC 4180, with a header) or JSON Lines, with one example per line.

A line has the content of the example (the `path` of an image, or `text`), its `label`, and
optionally its `split`.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from jaxtrain.data.sources.deal import deal
from jaxtrain.data.sources.source import check_classes, relabel, require_all
from jaxtrain.errors import UserError, nearest

SUFFIXES = ('.csv', '.jsonl')


@dataclass(frozen=True)
class Row:
    """One example of a list.

    Attributes:
      line: its line number in the file, from 1; the last one of a CSV record of several lines.
      content: the path or the text.
      label: the class; '' if labels are not read.
      split: the split; None if the list has no splits.
    """

    line: int
    content: str
    label: str
    split: str | None


@dataclass(frozen=True)
class Listed:
    """The examples of a split: the file that lists them, their rows, labels and class names."""

    file: str
    rows: tuple[Row, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """The column of a list that has the content of the examples.

    Attributes:
      name: 'path' or 'text'.
      clean: (file, its rows) -> the cleaned rows.
      identity: row -> the name by which the example is assigned to a split, if the list has no
        splits.
    """

    name: str
    clean: Callable[[str, list[Row]], list[Row]] = lambda file, rows: rows
    identity: Callable[[Row], str] = lambda row: row.content

    def open(self, cfg, split: str, key: str, classes: tuple[str, ...]) -> Listed:
        """Open a split of the list `config.data.path`, or of a folder with a list per split.

        Args, Raises: As in `folder.open_folder`.
        """
        path = os.path.expanduser(cfg.path)
        whole = not os.path.isdir(path)
        file = path if whole else file_of_split(path, split, key)
        rows = self.clean(file, read_list(file, self.name))
        assigned = whole and rows[0].split is None
        if not whole:
            _require_only(split, rows, file)
        elif not assigned:
            rows = _of_split(rows, split, key, file)
        if not classes:
            classes = _in_order({row.label for row in rows})
            check_classes(classes, file)
        numbers = relabel(sorted({row.label for row in rows}), classes, file)
        if assigned:
            rows = [rows[i] for i in deal(cfg, list(map(self.identity, rows)), split, key)]
        labels = tuple(numbers[row.label] for row in rows)
        if assigned and split == cfg.train:
            require_all(labels, classes, key, split)
        return Listed(file, tuple(rows), labels, classes)


def read_list(
    file: str, column: str, labelled: bool = True, key: str = 'config.data.path'
) -> list[Row]:
    """Return all rows of a list.

    Args:
      file: a .csv or .jsonl file.
      column: the column of the content of an example, 'path' or 'text'.
      labelled: whether each line must have a label.
      key: the config key or flag that names the file, for messages.

    Raises:
      UserError: If the file is not a readable CSV or JSONL file in UTF-8, or is empty or malformed.
    """
    kind = os.path.splitext(file)[1].lower()
    if kind not in SUFFIXES:
        raise UserError(
            f'{key}: {file} is not a list of examples; give a file that ends in '
            f'{" or ".join(SUFFIXES)}, or a folder with one per split'
        )
    text = read_text(file, key)
    columns = (column, 'label') if labelled else (column,)
    rows: list[Row] = []
    for line, fields in (_csv if kind == '.csv' else _jsonl)(file, text, columns):
        row = _row(file, line, fields, columns)
        if rows and (row.split is None) != (rows[0].split is None):
            raise UserError(f'{file}, line {line}: give a split in every line, or in none')
        rows.append(row)
    if not rows:
        raise UserError(
            f'{file} is empty; give a line with {" and ".join(columns)} for each example'
        )
    return rows


def read_text(path: str, key: str = 'config.data.path') -> str:
    """Return the content of a UTF-8 file; raise UserError, which names `key`, if it fails."""
    try:
        with open(path, encoding='utf-8-sig', newline='') as opened:
            return opened.read()
    except OSError as error:
        raise UserError(
            f'{key}: {path} cannot be read ({error.strerror}); name a file that can'
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f'{key}: {path} is not UTF-8 (byte {error.start}); save it as UTF-8'
        ) from error


def file_of_split(folder: str, split: str, key: str, suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """Return the one file SPLIT.csv or similar of a folder; raise UserError if there is not one."""
    names = sorted(n for n in os.listdir(folder) if os.path.splitext(n)[1].lower() in suffixes)
    fit = [name for name in names if os.path.splitext(name)[0] == split]
    if len(fit) > 1:
        raise UserError(f'{folder} has both {" and ".join(fit)}; remove one of them')
    if not fit:
        splits = [os.path.splitext(name)[0] for name in names]
        expected = ' or '.join(split + suffix for suffix in suffixes)
        raise UserError(
            f'{key}={split!r}: {folder} has no {expected}{nearest(split, splits)}; it has '
            f'{", ".join(names) or "none for any split"}'
        )
    return os.path.join(folder, fit[0])


def _require_only(split: str, rows: list[Row], file: str) -> None:
    """Raise UserError if the list of one split has rows of others."""
    others = sorted({row.split for row in rows if row.split is not None} - {split})
    if others:
        raise UserError(f'{file} has lines of the split {others[0]!r}; move them to their own file')


def _of_split(rows: list[Row], split: str, key: str, file: str) -> list[Row]:
    """Return the rows of a split, in a list of several; raise UserError if there are none."""
    selected = [row for row in rows if row.split == split]
    if not selected:
        others = sorted({row.split for row in rows if row.split is not None})
        raise UserError(
            f'{key}={split!r}: no line of {file} has that split{nearest(split, others)}; it has '
            f'{", ".join(others)}'
        )
    return selected


def _in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Sort class names, as numbers if all of them are numbers."""
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def _csv(file: str, text: str, required: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    # Fields that are whole texts may exceed the default limit of the module.
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text, newline=''), skipinitialspace=True, strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        for name in required:
            if text.strip() and columns.count(name) != 1:
                raise UserError(
                    f'{file}: its first line must name the columns {" and ".join(required)}, '
                    f'separated by commas, once each; it has {", ".join(columns)}'
                )
        for fields in reader:
            if None in fields or None in fields.values():
                raise UserError(
                    f'{file}, line {reader.line_num}: it does not have {len(columns)} fields, as '
                    'the first line does; put fields with a comma in quotes'
                )
            yield reader.line_num, fields
    except csv.Error as error:
        line = reader.line_num + 1  # line_num counts complete lines
        raise UserError(f'{file}, line {line}: {error}; fix the line') from error


def _jsonl(file: str, text: str, required: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    for line, words in enumerate(text.split('\n'), 1):
        if not words.strip():
            continue
        try:
            fields = json.loads(words)
        except (ValueError, RecursionError) as error:
            raise UserError(f'{file}, line {line}: it is not JSON ({error}); fix it') from error
        if not isinstance(fields, dict) or not set(required) <= set(fields):
            has = ', '.join(fields) or 'none' if isinstance(fields, dict) else 'no keys'
            raise UserError(
                f'{file}, line {line}: it must be an object with {" and ".join(required)}; it has '
                f'{has}'
            )
        yield line, fields


def _row(file: str, line: int, fields: dict, columns: tuple[str, ...]) -> Row:
    names = (*columns, 'split') if 'label' in columns else columns
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
    label = words['label'].strip() if 'label' in columns else ''
    return Row(line, words[columns[0]], label, split)
