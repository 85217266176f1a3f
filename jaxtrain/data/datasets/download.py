"""Archives of official data sets: downloaded or placed by hand, and always verified.

An archive lies in DATA_DIR/downloads/manual/NAME under its original file name, whether it was
downloaded or placed there by hand. Each data set has its own folder, because MNIST and
Fashion-MNIST use the same file names. TFDS reads archives from that folder and compares them with
its registered checksums. Archives that require a login must be placed there by hand; their
checksums are compared in this module.
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

_BLOCK = 2**18  # bytes read at a time from the network
_LARGE = 2**24  # bytes read at a time from disk
_TIMEOUT = (10, 60)  # seconds to connect, and seconds to wait for the next byte


def manual_dir(builder: tfds.core.DatasetBuilder) -> Path:
    """Return the folder of a data set's archives."""
    return Path(builder.data_dir_root) / 'downloads' / 'manual' / builder.name


def archives(builder: tfds.core.DatasetBuilder, dl_manager, urls: list[str]) -> list[Path]:
    """Return the verified archive of each URL, downloading those that are not in `manual_dir`.

    Args:
        builder: has `url_infos`, {url: size, SHA-256 and file name}, and `quiet`.
        dl_manager: TFDS's download manager, with `manual_dir(builder)` as its manual folder.
        urls: URLs of the archives, all in `builder.url_infos`.

    Raises:
        UserError: If an archive cannot be downloaded or written, or is not the official one.
    """
    folder = manual_dir(builder)
    paths = {url: folder / builder.url_infos[url].filename for url in urls}
    missing = [url for url in urls if not paths[url].exists()]
    for url in missing:
        try:
            _fetch(url, paths[url], builder.url_infos[url], builder.quiet)
        except requests.RequestException as error:
            # The message of an HTTP error has its status; that of a failed connection is a long
            # representation of objects.
            reason = error if error.response is not None else type(error).__name__
            raise _unavailable(builder, missing, f'{url} ({reason})') from error
        except _UnexpectedContent as error:
            raise _unavailable(builder, missing, f'{url} (the download has {error})') from error
        except OSError as error:
            raise UserError(
                f'config.data.dir: cannot write {paths[url]} ({error.strerror}); free some space '
                'there, or set another folder'
            ) from error
    for url, path in paths.items():
        try:
            dl_manager.download(url)
        except NonMatchingChecksumError as error:
            raise UserError(
                f'config.data.name = {builder.name!r}: {path} is damaged or not the '
                f'official file: its SHA-256 is not {builder.url_infos[url].checksum}; remove it '
                f'to download it again, or replace it with {url}'
            ) from error
    return list(paths.values())


def manual_archives(builder: tfds.core.DatasetBuilder, urls: list[str], site: str) -> list[Path]:
    """Return the verified archive of each URL, which a user has placed in `manual_dir`.

    Args:
        builder: has `url_infos`, {url: size and SHA-256}, and `quiet`.
        urls: URLs of the archives, all in `builder.url_infos`; the last part of a URL is the name
            of its file.
        site: the website that offers the archives, for messages.

    Raises:
        UserError: If an archive is missing or is not the official one.
    """
    folder = manual_dir(builder)
    paths = {url: folder / url.rpartition('/')[2] for url in urls}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise UserError(
            f'config.data.name = {builder.name!r}: {" and ".join(missing)} cannot be downloaded '
            f'without a login; get them from {site} and put them into {folder}'
        )

    def check(path: Path, what: str, value: int | str, expected: int | str) -> None:
        if value != expected:
            raise UserError(
                f'config.data.name = {builder.name!r}: {path} is damaged or not the official file: '
                f'its {what} is {value}, not {expected}; get it from {site} again'
            )

    for url, path in paths.items():  # check all sizes first, because a checksum takes minutes
        check(path, 'size', path.stat().st_size, int(builder.url_infos[url].size))
    for url, path in paths.items():
        check(path, 'SHA-256', _sha256(path, builder.quiet), builder.url_infos[url].checksum)
    return list(paths.values())


def _sha256(path: Path, quiet: bool) -> str:
    """Return the SHA-256 of a file, in hex."""
    sha256 = hashlib.sha256()
    with path.open('rb') as file:
        blocks = iter(lambda: file.read(_LARGE), b'')
        count = math.ceil(path.stat().st_size / _LARGE)
        for block in track(blocks, count, f'verifying {path.name}', quiet):
            sha256.update(block)
    return sha256.hexdigest()


class _UnexpectedContent(Exception):
    """A download whose content is not the registered one: a broken transfer, or a proxy's page."""


def _fetch(url: str, path: Path, expected: checksums.UrlInfo, quiet: bool) -> None:
    """Download one file, which gets its final name only once it is complete and verified."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    try:
        with requests.get(url, stream=True, timeout=_TIMEOUT) as response, part.open('wb') as file:
            response.raise_for_status()
            blocks = response.iter_content(_BLOCK)
            for block in track(blocks, math.ceil(expected.size / _BLOCK), path.name, quiet):
                file.write(block)
        received = checksums.compute_url_info(part)
        if received != expected:
            raise _UnexpectedContent(f'{int(received.size):,} bytes, SHA-256 {received.checksum}')
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _unavailable(builder: tfds.core.DatasetBuilder, missing: list[str], what: str) -> UserError:
    return UserError(
        f'config.data.name = {builder.name!r}: cannot download {what}; try again, or download '
        f'these on a machine with network access and put them into {manual_dir(builder)}: '
        f'{" ".join(missing)}'
    )


def track(items: Iterable, total: int, title: str, quiet: bool) -> Iterable:
    """Return an iterator over the items, with a progress bar if stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        return iter(items)
    from rich.console import Console
    from rich.progress import track as bar

    return bar(items, title, total=total, console=Console(stderr=True))
