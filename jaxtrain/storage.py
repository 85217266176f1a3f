"""Files of a run directory, on this machine or in a bucket ('gs://BUCKET/FOLDER', through etils).

A file is replaced as a whole: a reader sees the old content or the new, never a part. A request
that a bucket rejects, or that fails on a full or a network disk, is retried for about half a
minute; if it still fails, a UserError is raised.
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
# Errors that may pass: on network disks, or once another program has made room.
_PASSING = {errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, *_FULL}
# Errors of the disk, as opposed to errors in a name.
_TROUBLE = {errno.EROFS, errno.EFBIG, *_PASSING}
# HTTP 4xx of a bucket (forbidden or malformed): not retried.
_REFUSALS = range(400, 408)
# Seconds between two writes of an object in a bucket, which accepts about one per second.
BUCKET_EVERY = 10.0


def path(text: str | Path) -> Path:
    """The path of a folder or file. UserError if it lies in a bucket that cannot be read."""
    if '://' not in str(text):
        return pathlib.Path(text)
    try:
        from fsspec.config import conf

        # A cached listing would not show what another process writes.
        conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)
        result = epath.Path(str(text))
        result.exists()
    except Exception as error:
        raise UserError(
            f'{text} cannot be reached ({type(error).__name__}: {reason(error)}); pip install '
            "'jaxtrain[gcs]' for gs://, and check its name and permissions"
        ) from error
    return result


def on_disk(text: str | Path, command: str) -> pathlib.Path:
    """The path of a run directory, which must not lie in a bucket. UserError if it does."""
    if '://' in str(text):
        raise UserError(f'--workdir={text}: {command} writes to a disk; give a folder')
    return pathlib.Path(text)


def is_remote(place: Path) -> TypeGuard[epath.Path]:
    return '://' in str(place)


def absolute(place: Path) -> Path:
    return place if is_remote(place) else place.absolute()


def may_pass(error: BaseException) -> bool:
    """Whether to retry: any error but those of names, of permissions and in the code."""
    names = (FileNotFoundError, PermissionError, IsADirectoryError)
    if isinstance(error, (*names, UserError)) or not isinstance(error, Exception):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    # gcsfs has no exception type for 403, and one with a code for other errors.
    if str(error).startswith('Forbidden') or getattr(error, 'code', None) in _REFUSALS:
        return False
    return not isinstance(error, ValueError | TypeError | AttributeError | KeyError)


def failure(attempts: tenacity.RetryCallState) -> BaseException:
    """The error of the last attempt, after which another one follows."""
    error = attempts.outcome.exception() if attempts.outcome else None
    assert error is not None
    return error


def reason(error: BaseException) -> str:
    """The message of an error as one line; for an error of the disk, only its description."""
    text = ' '.join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # TensorStore has no exception types for errors of the disk.
    descriptions = (os.strerror(number) for number in sorted(_TROUBLE | {errno.EACCES}))
    if ' ' not in text:  # the message of a KeyError is the key
        text = f'{type(error).__name__} {text}'.strip()
    return next((words for words in descriptions if words in text), text[:200])


patiently = tenacity.retry(
    retry=tenacity.retry_if_exception(may_pass),
    # The client of a bucket has itself retried for half a minute before it raises an error.
    stop=tenacity.stop_after_attempt(6) | tenacity.stop_after_delay(30),
    wait=tenacity.wait_exponential(0.5, max=15),
    reraise=True,
)


@contextlib.contextmanager
def _as_user_error(place: Path, what: str) -> Iterator[None]:
    """Turns the errors of a disk or a bucket into UserErrors, but not those of a wrong name."""
    try:
        yield
    except (FileNotFoundError, UserError, TypeError, AttributeError):
        raise
    except Exception as error:
        if not is_remote(place) and getattr(error, 'errno', None) not in _TROUBLE:
            raise
        fix = 'check its permissions' if is_remote(place) else 'make room or mend the disk'
        raise UserError(
            f'{place} cannot be {what} ({reason(error)}); {fix}, and start the same command '
            'again to go on'
        ) from error


def write(place: Path, data: bytes) -> None:
    """Replaces the content of a file as a whole."""
    with _as_user_error(place, 'written'):
        _write(place, data)


@patiently
def _write(place: Path, data: bytes) -> None:
    if is_remote(place):
        place.write_bytes(data)  # an object exists only once it is complete
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
    """The content of a file; None if it does not exist."""
    with _as_user_error(place, 'read'):
        return _read(place)


@patiently
def _read(place: Path) -> bytes | None:
    try:
        return place.read_bytes()
    except FileNotFoundError:
        return None


def read_json(place: Path) -> Any:
    """The content of a JSON file; None if it does not exist."""
    content = read(place)
    return None if content is None else json.loads(content)


def read_lines(place: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines, without a last line that a kill has truncated."""
    lines = (read(place) or b'').split(b'\n')
    # A complete line ends with a newline, so an incomplete one, if any, follows the last newline.
    return [json.loads(line) for line in lines[:-1]]


class Appender:
    """Appends to a file; data whose writing fails for a while is neither lost nor duplicated.

    Args:
      place: the file.
      durable: whether all data is on disk before `add` returns, or a UserError is raised. Otherwise
        data that cannot be written stays in memory.
      make_room: called if the disk is full, before the next attempt.
    """

    def __init__(
        self,
        place: Path,
        durable: bool = False,
        make_room: Callable[[], None] = lambda: None,
    ):
        self._place, self._durable, self._remote = place, durable, is_remote(place)
        self._make_room = make_room
        content = read(place) or b''
        whole = content[: self._whole(content)]
        # All data of an object, which cannot be appended to; the data that a file still lacks.
        self._data, self._unsaved, self._synced = whole if self._remote else b'', False, 0.0
        if self._remote:
            return
        with _as_user_error(place, 'written'):
            place.parent.mkdir(parents=True, exist_ok=True)
            self._file = place.open('ab', buffering=0)
            if whole != content:
                self._file.truncate(len(whole))

    def _whole(self, content: bytes) -> int:
        """The length of the part to keep."""
        return len(content)

    def add(self, data: bytes) -> None:
        self._data += data
        self._unsaved = True
        if not self._remote or time.monotonic() - self._synced > BUCKET_EVERY:
            self.sync()

    def sync(self) -> None:
        """Writes all data to the disk, or to the bucket."""
        if not self._unsaved:
            return
        self._synced = time.monotonic()
        try:
            with _as_user_error(self._place, 'written'):
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
            while rest:  # a disk that becomes full accepts a part
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
    """Appends JSON lines to a file, after its complete lines."""

    def _whole(self, content: bytes) -> int:
        return content.rfind(b'\n') + 1

    def append(self, line: Mapping[str, Any]) -> None:
        self.add((json.dumps(line) + '\n').encode())
