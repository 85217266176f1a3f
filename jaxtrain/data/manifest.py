"""A list of image files and labels as a data set: CSV (RFC 4180, with a header) or JSON Lines."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jaxtrain.config import nearest
from jaxtrain.data.deal import deal
from jaxtrain.data.examples import Source, check_classes, relabel, require_all
from jaxtrain.data.files import Files, file_source
from jaxtrain.errors import UserError

SUFFIXES = ('.csv', '.jsonl')


@dataclass(frozen=True)
class Row:
    """One line: the path relative to the manifest, the class, the split if it names one."""

    line: int
    name: str
    label: str
    split: str | None


def open_manifest(
    cfg, split: str, key: str, size: tuple[int, ...], classes: tuple[str, ...]
) -> Source:
    """A split of the manifest `config.data.path`.

    That is FILE.csv or FILE.jsonl with the columns path, label and (or else each example is dealt
    to a split by its path without the suffix) split; or a folder with a file SPLIT.csv or
    SPLIT.jsonl per split. Paths are relative to the manifest's folder, or absolute. Labels are
    names or integers; further columns are ignored.

    Args, raises: as `folder.open_folder`.
    """
    path = os.path.expanduser(cfg.path)
    whole = not os.path.isdir(path)
    file = path if whole else _file_of_split(path, split, key)
    rows = read_rows(file)
    dealt = whole and rows[0].split is None
    if not dealt:
        rows = _of_split(rows, split, key, file, whole)
    if not classes:
        classes = _sorted({row.label for row in rows})
        check_classes(classes, file)
    labels = relabel(sorted({row.label for row in rows}), classes, file)
    if dealt:
        stems = [os.path.splitext(row.name)[0] for row in rows]
        rows = [rows[i] for i in deal(cfg, stems, split, key)]
    folder = os.path.dirname(file)
    files = Files(
        tuple(row.name for row in rows),
        tuple(os.path.join(folder, row.name) for row in rows),
        tuple(labels[row.label] for row in rows),
        classes,
    )
    if dealt and split == cfg.train:
        require_all(files.labels, classes, key, split)
    if cfg.on_bad_image != 'skip':
        _require_files(file, rows, files.paths)
    return file_source(cfg, files, size)


def read_rows(file: str) -> list[Row]:
    """All lines of a manifest.

    Raises:
      UserError: not a readable CSV or JSONL file in UTF-8, no lines, a line that is malformed, or
        two that name the same image.
    """
    text = _text(file)
    kind = os.path.splitext(file)[1].lower()
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for line, fields in (_csv if kind == '.csv' else _jsonl)(file, text):
        row = _row(file, line, fields)
        if row.name in lines:
            raise UserError(
                f'{file}, line {line}: {row.name} is in line {lines[row.name]} already; remove one'
            )
        if rows and (row.split is None) != (rows[0].split is None):
            raise UserError(f'{file}, line {line}: give a split in every line, or in none')
        lines[row.name] = line
        rows.append(row)
    if not rows:
        raise UserError(f'{file} lists no images; give a line with path and label for each')
    return rows


def _text(file: str) -> str:
    if os.path.splitext(file)[1].lower() not in SUFFIXES:
        raise UserError(
            f"config.data.path: {file} is not a manifest; for source='manifest' name a file that "
            f'ends in {" or ".join(SUFFIXES)}, or a folder with one for each split'
        )
    try:
        with open(file, encoding='utf-8-sig', newline='') as opened:
            return opened.read()
    except OSError as error:
        raise UserError(
            f'config.data.path: {file} cannot be read ({error.strerror}); name a manifest'
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f'{file} is not UTF-8 (byte {error.start}); save it as UTF-8') from error


def _csv(file: str, text: str) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(io.StringIO(text, newline=''), skipinitialspace=True, strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        for name in ('path', 'label'):
            if text.strip() and columns.count(name) != 1:
                raise UserError(
                    f'{file}: its first line must name the columns path and label, separated by '
                    f'commas, once each; it has {", ".join(columns)}'
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


def _jsonl(file: str, text: str) -> Iterator[tuple[int, dict]]:
    for line, words in enumerate(text.split('\n'), 1):
        if not words.strip():
            continue
        try:
            fields = json.loads(words)
        except (ValueError, RecursionError) as error:
            raise UserError(f'{file}, line {line}: it is not JSON ({error}); mend it') from error
        if not isinstance(fields, dict) or not {'path', 'label'} <= set(fields):
            has = ', '.join(fields) or 'none' if isinstance(fields, dict) else 'no keys'
            raise UserError(
                f'{file}, line {line}: it must be an object with path and label; it has {has}'
            )
        yield line, fields


def _row(file: str, line: int, fields: dict) -> Row:
    words = {name: fields[name] for name in ('path', 'label', 'split') if name in fields}
    if type(words['label']) is int:
        words['label'] = str(words['label'])
    for name, word in words.items():
        if not isinstance(word, str) or not word.strip():
            kind = 'a name or an integer' if name == 'label' else 'a name'
            raise UserError(f'{file}, line {line}: {name} is {word!r}; give {kind}')
    path, folder = words['path'].strip(), os.path.dirname(file)
    if os.path.isabs(path) and not os.path.relpath(path, folder or '.').startswith('..'):
        path = os.path.relpath(path, folder or '.')  # so that the whole may be moved
    split = words['split'].strip() if 'split' in words else None
    return Row(line, os.path.normpath(path), words['label'].strip(), split)


def _file_of_split(folder: str, split: str, key: str) -> str:
    names = sorted(n for n in os.listdir(folder) if os.path.splitext(n)[1].lower() in SUFFIXES)
    fit = [name for name in names if os.path.splitext(name)[0] == split]
    if len(fit) > 1:
        raise UserError(f'{folder} has both {" and ".join(fit)}; remove one of them')
    if not fit:
        splits = [os.path.splitext(name)[0] for name in names]
        raise UserError(
            f'{key}={split!r}: {folder} has no {split}.csv or {split}.jsonl'
            f'{nearest(split, splits)}; it has {", ".join(names) or "no manifest"}'
        )
    return os.path.join(folder, fit[0])


def _of_split(rows: list[Row], split: str, key: str, file: str, whole: bool) -> list[Row]:
    """The rows of a split; in a file for one split alone there must be no others."""
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


def _sorted(labels: Iterable[str]) -> tuple[str, ...]:
    """Class names in the order of labels: as numbers if all of them are."""
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def _require_files(file: str, rows: list[Row], paths: Iterable[str]) -> None:
    for row, path in zip(rows, paths, strict=True):
        if not os.path.isfile(path):
            raise UserError(
                f'{file}, line {row.line}: there is no image {path}; paths are relative to the '
                "manifest's folder"
            )
