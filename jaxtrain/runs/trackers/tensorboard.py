"""The metrics of a run as TensorBoard event files."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtrain import storage
from jaxtrain.errors import UserError


class Board:
    """Writer of event files. A disk that cannot be written to does not end the run.

    tensorboardX's SummaryWriter blocks forever once its thread has failed to write, and its files
    cannot be appended to in a bucket. This class therefore uses its file writer without the thread,
    and copies the files to the bucket.
    """

    def __init__(self, folder: storage.Path, step: int):
        """Begin a file for a run that continues after `step`."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._folder, self._remote = folder, storage.is_remote(folder)
        self._local = Path(tempfile.mkdtemp()) if self._remote else folder
        self._local.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(self._local / 'events'), f'.{os.getpid()}')
        self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def append(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        numbers = [Summary.Value(tag=name, simple_value=v) for name, v in values.items()]
        self._add(step=step, summary=Summary(value=numbers))

    def sync(self) -> None:
        with contextlib.suppress(OSError, UserError):
            self._writer.flush()
            for file in self._local.iterdir() if self._remote else ():
                storage.write(self._folder / file.name, file.read_bytes())

    def close(self) -> None:
        self.sync()
        with contextlib.suppress(OSError):
            self._writer.close()
        if self._remote:
            shutil.rmtree(self._local)

    def _add(self, **values: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with contextlib.suppress(OSError):
            self._writer.write_event(Event(wall_time=time.time(), **values))
