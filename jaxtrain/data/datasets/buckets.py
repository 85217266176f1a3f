"""Files in which TFDS sorts a data set while it prepares it, written without TensorFlow.

TFDS sorts the examples of a split by their hashed keys: up to one gigabyte in memory, beyond that
in a thousand files, which it writes with TensorFlow. The class below replaces those files.
"""

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path

from tensorflow_datasets.core import shuffle

_PENDING = 2**18  # bytes that a bucket buffers: a thousand buckets take 256 MiB


class Bucket:
    """A replacement for `tensorflow_datasets.core.shuffle._Bucket`: a file of (key, bytes) pairs.

    The file is open only while it is written or read, because a process may be limited to 1024
    open files.
    """

    def __init__(self, path):
        self._path = Path(path)
        self._pending: list[bytes] = []
        self._bytes = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, key: int, data: bytes) -> None:
        self._pending.append(pickle.dumps((key, data)))
        self._bytes += len(data)
        self._length += 1
        if self._bytes >= _PENDING:
            self.flush()

    def flush(self) -> None:
        with self._path.open('ab') as file:
            file.writelines(self._pending)
        self._pending, self._bytes = [], 0

    def read_values(self) -> Iterator[tuple[int, bytes]]:
        """Yield the pairs in the order in which they were added."""
        self.flush()
        with self._path.open('rb') as file:
            for _ in range(self._length):
                yield pickle.load(file)

    def del_file(self) -> None:
        self._path.unlink()


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Make TFDS sort the examples that it prepares in `Bucket` files."""
    original = shuffle._Bucket
    shuffle._Bucket = Bucket
    try:
        yield
    finally:
        shuffle._Bucket = original
