"""Where a data set that does not fit into memory is sorted while it is prepared.

TFDS keeps the examples of a split in memory up to a gigabyte, and beyond that in a thousand files,
by their hashed keys; it writes those files with TensorFlow. These do without.
"""

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path

from tensorflow_datasets.core import shuffle

_PENDING = 2**18  # bytes that a bucket holds back: a thousand of them take 256 MiB


class Bucket:
    """Stands in for `tensorflow_datasets.core.shuffle._Bucket`: pairs of a key and bytes.

    Its file is open only while it is written or read, since a process may have 1024 open files.
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
        """Yields the pairs in the order in which they were added."""
        self.flush()
        with self._path.open('rb') as file:
            for _ in range(self._length):
                yield pickle.load(file)

    def del_file(self) -> None:
        self._path.unlink()


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Has TFDS sort what it prepares in files that are written without TensorFlow."""
    theirs = shuffle._Bucket
    shuffle._Bucket = Bucket
    try:
        yield
    finally:
        shuffle._Bucket = theirs
