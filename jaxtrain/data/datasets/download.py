"""Archives of official data sets: fetched, or put there by hand, and never used unverified.

An archive lies in DATA_DIR/downloads/manual/NAME, under the name that it has at its source, whoever
put it there; a folder of its own for each data set, because MNIST and Fashion-MNIST call their
files alike. TFDS takes what it finds there, and compares it with the checksums that it comes with.
Archives that take a login can only be put there by hand, and are compared here.
"""

import hashlib
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from jaxtrain.errors import UserError

_BLOCK = 2**18  # bytes, of what comes over a network
_LARGE = 2**24  # bytes, of what lies on disk
_TIMEOUT = (10, 60)  # seconds: to be connected, and for the next byte to come


def manual_dir(builder: tfds.core.DatasetBuilder) -> Path:
    """Returns the folder of a data set's archives."""
    return Path(builder.data_dir_root) / 'downloads' / 'manual' / builder.name


def archives(builder: tfds.core.DatasetBuilder, dl_manager, urls: list[str]) -> list[Path]:
    """Returns the archive of each URL, downloaded if it is not in `manual_dir`, and verified.

    Args:
        builder: has `url_infos`, {url: size, SHA-256 and file name}, and `quiet`.
        dl_manager: TFDS's, made with `manual_dir(builder)` as its manual folder.
        urls: of the archives, all in `builder.url_infos`.

    Raises:
        UserError: an archive cannot be downloaded or written, or is not the official one.
    """
    folder = manual_dir(builder)
    paths = {url: folder / builder.url_infos[url].filename for url in urls}
    missing = [url for url in urls if not paths[url].exists()]
    for url in missing:
        try:
            _fetch(url, paths[url], builder.url_infos[url], builder.quiet)
        except requests.RequestException as error:
            # Of a status, the message says which; of a connection, it is a page of objects.
            reason = error if error.response is not None else type(error).__name__
            raise _unavailable(builder, missing, f'{url} ({reason})') from error
        except _OtherContent as error:
            raise _unavailable(builder, missing, f'{url} (what came has {error})') from error
        except OSError as error:
            raise UserError(
                f'config.data.dir: cannot write {paths[url]} ({error.strerror}); make room there, '
                'or name another folder'
            ) from error
    for url, path in paths.items():
        try:
            dl_manager.download(url)
        except NonMatchingChecksumError as error:
            raise UserError(
                f'config.data.name = {builder.name!r}: {path} is not the official file, or is '
                f'damaged: its SHA-256 is not {builder.url_infos[url].checksum}; remove it, and it '
                f'is downloaded again, or put {url} in its place'
            ) from error
    return list(paths.values())


def hand_put(builder: tfds.core.DatasetBuilder, urls: list[str], site: str) -> list[Path]:
    """Returns the archive of each URL, which a user has put into `manual_dir`, verified.

    Args:
        builder: has `url_infos`, {url: size and SHA-256}, and `quiet`.
        urls: of the archives, all in `builder.url_infos`; they lie under the URL's last part.
        site: where a user gets them, for the message.

    Raises:
        UserError: an archive is not there, or is not the official one.
    """
    folder = manual_dir(builder)
    paths = {url: folder / url.rpartition('/')[2] for url in urls}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise UserError(
            f'config.data.name = {builder.name!r}: {" and ".join(missing)} cannot be downloaded '
            f'without a login; get them from {site}, and put them into {folder}'
        )
    for url, path in paths.items():  # all sizes before the first checksum, which takes minutes
        _check(builder, path, 'size', path.stat().st_size, int(builder.url_infos[url].size), site)
    for url, path in paths.items():
        expected = builder.url_infos[url].checksum
        _check(builder, path, 'SHA-256', _sha256(path, builder.quiet), expected, site)
    return list(paths.values())


def _check(builder, path: Path, what: str, found, expected, site: str) -> None:
    if found != expected:
        raise UserError(
            f'config.data.name = {builder.name!r}: {path} is not the official file, or is damaged: '
            f'its {what} is {found}, not {expected}; get it from {site} again'
        )


def _sha256(path: Path, quiet: bool) -> str:
    """Returns the SHA-256 of a file, in hex."""
    total = hashlib.sha256()
    with path.open('rb') as file:
        blocks = iter(lambda: file.read(_LARGE), b'')
        count = math.ceil(path.stat().st_size / _LARGE)
        for block in track(blocks, count, f'verifying {path.name}', quiet):
            total.update(block)
    return total.hexdigest()


class _OtherContent(Exception):
    """What was downloaded is not what was registered: a broken transfer, or a proxy's page."""


def _fetch(url: str, path: Path, expected: checksums.UrlInfo, quiet: bool) -> None:
    """Downloads one file; it has its name only when it is whole and verified."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    try:
        with requests.get(url, stream=True, timeout=_TIMEOUT) as answer, part.open('wb') as file:
            answer.raise_for_status()
            blocks = answer.iter_content(_BLOCK)
            for block in track(blocks, math.ceil(expected.size / _BLOCK), path.name, quiet):
                file.write(block)
        received = checksums.compute_url_info(part)
        if received != expected:
            raise _OtherContent(f'{int(received.size):,} bytes, SHA-256 {received.checksum}')
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _unavailable(builder: tfds.core.DatasetBuilder, missing: list[str], what: str) -> UserError:
    return UserError(
        f'config.data.name = {builder.name!r}: cannot download {what}; try again, or download by '
        f'hand, where there is a network, and put into {manual_dir(builder)}: {" ".join(missing)}'
    )


def track(items: Iterable, total: int, title: str, quiet: bool) -> Iterable:
    """Returns an iterator over the items, with a bar on stderr if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        return iter(items)
    from rich.console import Console
    from rich.progress import track as bar

    return bar(items, title, total=total, console=Console(stderr=True))
