"""Finding image files: those that are named, and those in folders."""

import os
from collections.abc import Iterable, Sequence

from jaxtrain.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')


def find(paths: Iterable[str]) -> list[str]:
    """Image files: those named, whatever their suffix, and those anywhere under folders named.

    Raises:
      UserError: a path that does not exist, or a folder without images.
    """
    found = []
    for path in map(os.path.expanduser, paths):
        if not os.path.exists(path):
            raise UserError(f'{path}: no such file or folder; name an image or a folder of images')
        inside = [os.path.join(path, name) for name in walk(path)] if os.path.isdir(path) else None
        if inside == []:
            raise UserError(f'{path} holds no images ({", ".join(SUFFIXES)}); name another folder')
        found += [path] if inside is None else inside
    return found


def walk(folder: str) -> list[str]:
    """Paths relative to a folder of the image files anywhere under it, sorted; none is hidden."""
    found, pending = [], ['']
    while pending:
        inside = pending.pop()
        for entry in scan(os.path.join(folder, inside)):
            if _is_folder(entry):
                pending.append(f'{inside}{entry.name}/')
            elif entry.name.lower().endswith(SUFFIXES):
                found.append(inside + entry.name)
    return sorted(found)


def scan(folder: str) -> Sequence[os.DirEntry]:
    """What lies directly in a folder and is not hidden.

    Raises:
      UserError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith('.')]
    except OSError as error:
        raise UserError(f'{folder} cannot be listed ({error.strerror}); mend or move it') from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        folder = entry.is_dir()
        linked = os.path.realpath(entry.path) if folder and entry.is_symlink() else ''
    except OSError as error:
        raise UserError(f'{entry.path}: {error.strerror}; mend or remove it') from error
    if linked and os.path.commonpath([linked, os.path.realpath(os.path.dirname(entry.path))]) == (
        linked
    ):
        raise UserError(f'{entry.path} is a link to a folder that it lies in; remove it')
    return folder
