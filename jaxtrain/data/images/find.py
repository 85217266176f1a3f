"""Finds image files by name and in folders."""

import os
from collections.abc import Iterable, Sequence

from jaxtrain.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')


def find(paths: Iterable[str]) -> list[str]:
    """Return the named files, whatever their suffix, and all image files under the named folders.

    Raises:
      UserError: If a path does not exist, or a folder has no images.
    """
    files = []
    for path in map(os.path.expanduser, paths):
        if not os.path.exists(path):
            raise UserError(f'{path}: no such file or folder; name an image or a folder of images')
        inside = [os.path.join(path, name) for name in walk(path)] if os.path.isdir(path) else None
        if inside == []:
            raise UserError(f'{path} holds no images ({", ".join(SUFFIXES)}); name another folder')
        files += [path] if inside is None else inside
    return files


def walk(folder: str) -> list[str]:
    """Return the sorted relative paths of all image files under a folder that are not hidden."""
    files, pending = [], ['']
    while pending:
        inside = pending.pop()
        for entry in scan(os.path.join(folder, inside)):
            if _is_folder(entry):
                pending.append(f'{inside}{entry.name}/')
            elif entry.name.lower().endswith(SUFFIXES):
                files.append(inside + entry.name)
    return sorted(files)


def scan(folder: str) -> Sequence[os.DirEntry]:
    """Return the entries of a folder that are not hidden.

    Raises:
      UserError: If the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith('.')]
    except OSError as error:
        raise UserError(f'{folder} cannot be listed ({error.strerror}); fix or move it') from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        folder = entry.is_dir()
        linked = os.path.realpath(entry.path) if folder and entry.is_symlink() else ''
    except OSError as error:
        raise UserError(f'{entry.path}: {error.strerror}; fix or remove it') from error
    if linked and os.path.commonpath([linked, os.path.realpath(os.path.dirname(entry.path))]) == (
        linked
    ):
        raise UserError(f'{entry.path} is a link to a folder that contains it; remove it')
    return folder
