"""Files of a run directory, on this machine or in a bucket ('gs://BUCKET/FOLDER', through etils).

A file is replaced whole: a reader sees the old content or the new, never a part. What a bucket, or
a disk that is full or over the network, refuses once is tried again for about half a minute; if it
still does, that is a UserError.
"""

import contextlib
import errno
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeGuard

import tenacity
from etils import epath

from jaxtrain.errors import UserError

Path: TypeAlias = pathlib.Path | epath.Path
_FULL = {errno.ENOSPC, errno.EDQUOT}
# What passes by itself: on disks over the network, or once another has made room.
_PASSING = {errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, *_FULL}
# What is wrong with the disk and not with a name.
_TROUBLE = {errno.EROFS, errno.EFBIG, *_PASSING}
# Of a bucket: what it answers to those who may not, or who do not make sense.
_REFUSALS = range(400, 408)
# Seconds between two writes of a bucket's object, which takes about one a second.
BUCKET_EVERY = 10.0


def path(text: str | Path) -> Path:
    """A folder or file by its name; UserError if it lies in a bucket that nothing here can read."""
    if '://' not in str(text):
        return pathlib.Path(text)
    try:
        from fsspec.config import conf

        # Of what another process writes: a listing that is kept does not show it.
        conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)
        found = epath.Path(str(text))
        found.exists()
    except Exception as error:
        raise UserError(
            f'{text} cannot be reached ({type(error).__name__}: {reason(error)}); pip install '
            "'jaxtrain[gcs]' for gs://, and check its name and who may read it"
        ) from error
    return found


def on_disk(text: str | Path, command: str) -> pathlib.Path:
    """The path of a run directory that cannot lie in a bucket. UserError if it does."""
    if '://' in str(text):
        raise UserError(f'--workdir={text}: {command} writes to a disk; give a folder')
    return pathlib.Path(text)


def is_remote(place: Path) -> TypeGuard[epath.Path]:
    return '://' in str(place)


def absolute(place: Path) -> Path:
    return place if is_remote(place) else place.absolute()


def may_pass(error: BaseException) -> bool:
    """Whether to try again: what a bucket refused for whatever reason but a wrong name or right."""
    names = (FileNotFoundError, PermissionError, IsADirectoryError)
    if isinstance(error, (*names, UserError)) or not isinstance(error, Exception):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    # gcsfs has no kind of its own for 403, and one with a code for others.
    if str(error).startswith('Forbidden') or getattr(error, 'code', None) in _REFUSALS:
        return False
    return not isinstance(error, ValueError | TypeError | AttributeError | KeyError)


def failure(attempts: tenacity.RetryCallState) -> BaseException:
    """What the last attempt has raised, on which another one follows."""
    error = attempts.outcome.exception() if attempts.outcome else None
    assert error is not None
    return error


def reason(error: BaseException) -> str:
    """What an error says, on a line; of the disk's just what is wrong with it."""
    text = ' '.join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # TensorStore has no kind of its own for them.
    said = (os.strerror(number) for number in sorted(_TROUBLE | {errno.EACCES}))
    if ' ' not in text:  # of a KeyError it is the key
        text = f'{type(error).__name__} {text}'.strip()
    return next((words for words in said if words in text), text[:200])


patiently = tenacity.retry(
    retry=tenacity.retry_if_exception(may_pass),
    # A client of buckets has tried for half a minute before it says so.
    stop=tenacity.stop_after_attempt(6) | tenacity.stop_after_delay(30),
    wait=tenacity.wait_exponential(0.5, max=15),
    reraise=True,
)


@contextlib.contextmanager
def _told(place: Path, what: str) -> Iterator[None]:
    """A disk in trouble, or a bucket that refuses, ends as a UserError; a wrong name does not."""
    try:
        yield
    except (FileNotFoundError, UserError, TypeError, AttributeError):
        raise
    except Exception as error:
        if not is_remote(place) and getattr(error, 'errno', None) not in _TROUBLE:
            raise
        mend = 'check who may do so' if is_remote(place) else 'make room or mend the disk'
        raise UserError(
            f'{place} cannot be {what} ({reason(error)}); {mend}, and start the same command '
            'again to go on'
        ) from error


def write(place: Path, data: bytes) -> None:
    """Replaces a file whole."""
    with _told(place, 'written'):
        _write(place, data)


@patiently
def _write(place: Path, data: bytes) -> None:
    if is_remote(place):
        place.write_bytes(data)  # an object is only there once it is whole
        return
    temporary = place.with_name(f'.{place.name}.{os.getpid()}')
    try:
        temporary.write_bytes(data)
        os.replace(temporary, place)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read(place: Path) -> bytes | None:
    """The content of a file, None where there is none."""
    with _told(place, 'read'):
        return _read(place)


@patiently
def _read(place: Path) -> bytes | None:
    try:
        return place.read_bytes()
    except FileNotFoundError:
        return None


def read_json(place: Path) -> Any:
    """The content of a JSON file, None where there is none."""
    content = read(place)
    return None if content is None else json.loads(content)


def read_lines(place: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line that was cut off by a kill is left out."""
    lines = (read(place) or b'').split(b'\n')
    # A whole line ends with a newline, so what follows the last newline is a torn line or nothing.
    return [json.loads(line) for line in lines[:-1]]


class Appender:
    """Appends to a file; of what is refused for a while nothing gets lost, or is there twice.

    Args:
      place: the file.
      durable: have all on disk before `add` returns, or a UserError. Else it waits in memory while
        the disk or the bucket refuses it.
      make_room: called where the disk is full, before it is tried again.
    """

    def __init__(
        self,
        place: Path,
        durable: bool = False,
        make_room: Callable[[], None] = lambda: None,
    ):
        self._place, self._durable, self._remote = place, durable, is_remote(place)
        self._make_room = make_room
        found = read(place) or b''
        whole = found[: self._whole(found)]
        # Of an object, which cannot be appended to, all; of a file what is not in it yet.
        self._data, self._unsaved, self._said = whole if self._remote else b'', False, 0.0
        if self._remote:
            return
        with _told(place, 'written'):
            place.parent.mkdir(parents=True, exist_ok=True)
            self._file = place.open('ab', buffering=0)
            if whole != found:
                self._file.truncate(len(whole))

    def _whole(self, found: bytes) -> int:
        """How much of what is there is whole."""
        return len(found)

    def add(self, data: bytes) -> None:
        self._data += data
        self._unsaved = True
        if not self._remote or time.monotonic() - self._said > BUCKET_EVERY:
            self.sync()

    def sync(self) -> None:
        """Has all on the disk, or in the bucket."""
        if not self._unsaved:
            return
        self._said = time.monotonic()
        try:
            with _told(self._place, 'written'):
                put = self._put
                if self._durable or self._remote:
                    put = patiently(put).retry_with(before_sleep=self._again)
                put()
        except UserError:
            if self._durable:
                raise
            return
        self._unsaved = False

    def _again(self, attempts: tenacity.RetryCallState) -> None:
        if getattr(failure(attempts), 'errno', None) in _FULL:
            self._make_room()

    def _put(self) -> None:
        if self._remote:
            self._place.write_bytes(self._data)
            return
        end, rest = os.fstat(self._file.fileno()).st_size, self._data
        try:
            while rest:  # a disk that gets full takes a part
                rest = rest[self._file.write(rest) :]
            if self._durable:
                os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise
        self._data = b''

    def close(self) -> None:
        self.sync()
        if not self._remote:
            self._file.close()


class Lines(Appender):
    """Appends JSON lines to a file, behind the whole ones that are there."""

    def _whole(self, found: bytes) -> int:
        return found.rfind(b'\n') + 1

    def append(self, line: Mapping[str, Any]) -> None:
        self.add((json.dumps(line) + '\n').encode())
