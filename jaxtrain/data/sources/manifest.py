"""A list of image files and labels as a data set (listing.py tells how it is written)."""

import os
from collections.abc import Iterable
from dataclasses import replace

from jaxtrain.data.sources.files import Files, file_source
from jaxtrain.data.sources.listing import Row, open_list
from jaxtrain.data.sources.source import Source
from jaxtrain.errors import UserError


def open_manifest(cfg, split: str, key: str, classes: tuple[str, ...]) -> Source:
    """A split of the manifest `config.data.path`.

    That is FILE.csv or FILE.jsonl with the columns path, label and (or else each example is dealt
    to a split by its path without the suffix) split; or a folder with a file SPLIT.csv or
    SPLIT.jsonl per split. Paths are relative to the manifest's folder, or absolute. Labels are
    names or integers; further columns are ignored.

    Args, raises: as `folder.open_folder`.
    """
    found = open_list(cfg, split, key, 'path', classes, _clean, _stem)
    folder = os.path.dirname(found.file)
    files = Files(
        tuple(row.content for row in found.rows),
        tuple(os.path.join(folder, row.content) for row in found.rows),
        found.labels,
        found.classes,
    )
    if cfg.on_bad_image != 'skip':
        _require_files(found.file, found.rows, files.paths)
    return file_source(cfg, files, split)


def _clean(file: str, rows: list[Row]) -> list[Row]:
    """The rows with paths as `_path` gives them. UserError if two name the same image."""
    lines: dict[str, int] = {}
    folder = os.path.dirname(file)
    rows = [replace(row, content=_path(row.content, folder)) for row in rows]
    for row in rows:
        if row.content in lines:
            raise UserError(
                f'{file}, line {row.line}: {row.content} is in line {lines[row.content]} already; '
                'remove one'
            )
        lines[row.content] = row.line
    return rows


def _path(path: str, folder: str) -> str:
    """Relative to the manifest's folder where it lies in it, so that the whole may be moved."""
    path = path.strip()
    if os.path.isabs(path) and not os.path.relpath(path, folder or '.').startswith('..'):
        path = os.path.relpath(path, folder or '.')
    return os.path.normpath(path)


def _stem(row: Row) -> str:
    return os.path.splitext(row.content)[0]


def _require_files(file: str, rows: Iterable[Row], paths: Iterable[str]) -> None:
    for row, path in zip(rows, paths, strict=True):
        if not os.path.isfile(path):
            raise UserError(
                f'{file}, line {row.line}: there is no image {path}; paths are relative to the '
                "manifest's folder"
            )
