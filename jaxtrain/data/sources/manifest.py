"""The source 'manifest': a list of image files and labels, in the format of listing.py."""

import os
from collections.abc import Iterable
from dataclasses import replace

from jaxtrain.data.sources.files import Files, file_source
from jaxtrain.data.sources.listing import Column, Row
from jaxtrain.data.sources.source import Source
from jaxtrain.errors import UserError


def open_manifest(cfg, split: str, key: str, classes: tuple[str, ...]) -> Source:
    """Open a split of the manifest `config.data.path`.

    The path is FILE.csv or FILE.jsonl with the columns path, label and optionally split (without
    it, each example is assigned to a split by its path without the suffix); or a folder with a file
    SPLIT.csv or SPLIT.jsonl per split. Paths are absolute or relative to the manifest's folder.
    Labels are names or integers; other columns are ignored.

    Args, Raises: As in `folder.open_folder`.
    """
    listed = Column('path', _clean, _stem).open(cfg, split, key, classes)
    folder = os.path.dirname(listed.file)
    files = Files(
        tuple(row.content for row in listed.rows),
        tuple(os.path.join(folder, row.content) for row in listed.rows),
        listed.labels,
        listed.classes,
    )
    if cfg.on_bad_image != 'skip':
        _require_files(listed.file, listed.rows, files.paths)
    return file_source(cfg, files, split)


def _clean(file: str, rows: list[Row]) -> list[Row]:
    """Normalise the paths of rows; raise UserError if two rows name the same image."""
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
    """Make a path inside the manifest's folder relative to it, so that the folder can be moved."""
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
