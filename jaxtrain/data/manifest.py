"""A list of image files and labels as a data set (listing.py tells how it is written)."""

import os
from collections.abc import Iterable
from dataclasses import replace

from jaxtrain.data.deal import deal
from jaxtrain.data.examples import Source, check_classes, relabel, require_all
from jaxtrain.data.files import Files, file_source
from jaxtrain.data.listing import Row, file_of_split, in_order, of_split, read_list
from jaxtrain.errors import UserError


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
    file = path if whole else file_of_split(path, split, key)
    folder = os.path.dirname(file)
    rows = [replace(row, content=_path(row.content, folder)) for row in read_list(file, 'path')]
    _check_once(file, rows)
    dealt = whole and rows[0].split is None
    if not dealt:
        rows = of_split(rows, split, key, file, whole)
    if not classes:
        classes = in_order({row.label for row in rows})
        check_classes(classes, file)
    labels = relabel(sorted({row.label for row in rows}), classes, file)
    if dealt:
        stems = [os.path.splitext(row.content)[0] for row in rows]
        rows = [rows[i] for i in deal(cfg, stems, split, key)]
    files = Files(
        tuple(row.content for row in rows),
        tuple(os.path.join(folder, row.content) for row in rows),
        tuple(labels[row.label] for row in rows),
        classes,
    )
    if dealt and split == cfg.train:
        require_all(files.labels, classes, key, split)
    if cfg.on_bad_image != 'skip':
        _require_files(file, rows, files.paths)
    return file_source(cfg, files, size)


def _path(path: str, folder: str) -> str:
    """Relative to the manifest's folder where it lies in it, so that the whole may be moved."""
    path = path.strip()
    if os.path.isabs(path) and not os.path.relpath(path, folder or '.').startswith('..'):
        path = os.path.relpath(path, folder or '.')
    return os.path.normpath(path)


def _check_once(file: str, rows: list[Row]) -> None:
    """UserError if two lines name the same image."""
    lines: dict[str, int] = {}
    for row in rows:
        if row.content in lines:
            raise UserError(
                f'{file}, line {row.line}: {row.content} is in line {lines[row.content]} already; '
                'remove one'
            )
        lines[row.content] = row.line


def _require_files(file: str, rows: list[Row], paths: Iterable[str]) -> None:
    for row, path in zip(rows, paths, strict=True):
        if not os.path.isfile(path):
            raise UserError(
                f'{file}, line {row.line}: there is no image {path}; paths are relative to the '
                "manifest's folder"
            )
