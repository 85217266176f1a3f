"""The run directory: config, tables, metrics, result and curves; nothing in it is half-written.

| file            | what                                                                           |
|-----------------|--------------------------------------------------------------------------------|
| config.json     | the resolved config, classes and size of the data, the version of the random   |
|                 | streams (streams.py), versions of packages, git revision                       |
| params.tsv      | the parameter table                                                            |
| restore.json    | the restore plan, when weights were restored                                   |
| metrics.jsonl   | one JSON object a line: step, split, then numbers by name                      |
| events.jsonl    | the timeline over all starts (events.py)                                       |
| checkpoints/    | Orbax                                                                          |
| damaged/        | checkpoints that proved to be damaged, when there were any                     |
| stacks/         | what each process was doing when the run hung, if it did                       |
| tensorboard/    | the same numbers as event files                                                |
| test.npz        | the test metrics of every example, in the order of the split                   |
| result.json     | the summary; its presence says that the run is finished                        |
| curves.png      | the curves, for looking                                                        |
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain import storage
from jaxtrain.config import changes, streams
from jaxtrain.config.closed import flatten
from jaxtrain.config.keys import RESUMABLE
from jaxtrain.errors import UserError

METRICS = 'metrics.jsonl'
PACKAGES = ('jaxtrain', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def write_json_file(path: str, value: Any) -> None:
    """Writes a JSON file that the user has named. UserError if that cannot be done."""
    try:
        storage.write(storage.path(path), (json.dumps(value, indent=2) + '\n').encode())
    except OSError as error:
        raise UserError(
            f'--output={path} cannot be written ({error.strerror}); name another file'
        ) from error


@dataclass(frozen=True)
class RunDir:
    """The files of a run. Of several processes only the first writes; the others check and read.

    Attributes:
      path: the folder.
      writes: whether this process writes.
    """

    path: storage.Path
    writes: bool = True

    def check_writable(self) -> None:
        """Makes the folder. UserError if that cannot be done or nothing can be written there."""
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f'.writable.{os.getpid()}'
            probe.write_bytes(b'')
            probe.unlink()
        except Exception as error:  # a bucket has kinds of its own
            raise UserError(
                f'--workdir={self.path} cannot be written ({storage.reason(error)}); give another '
                'folder'
            ) from error

    def claim(self, config: dict[str, Any], data: dict[str, Any] | None = None) -> None:
        """Writes config.json, or checks that the one there says the same.

        Args:
          config: the resolved config.
          data: what the training data is (`Job.data`), where there is any.

        Raises:
          UserError: the folder belongs to a run with another config, or the data has changed since.
        """
        if not self.check(config, data):
            entries = {'config': config, **({'data': data} if data else {})}
            self.write_json('config.json', {**entries, 'streams': streams.VERSION, **provenance()})

    def check(self, config: dict[str, Any], data: dict[str, Any] | None = None) -> bool:
        """Whether there is a config.json that says the same. Args, raises: as `claim`."""
        written = storage.read_json(self.path / 'config.json')
        if written is None:
            return False
        streams.check(written, self.path)
        there = changes.current(written['config'], changes.CHANGES)
        if differing := _differing(_whole(there), _whole(config), but=RESUMABLE):
            raise UserError(
                f'--workdir={self.path} belongs to a run with another config: {differing}; '
                'give another folder, or the same config to resume it'
            )
        before, now = written.get('data', {}), _as_json(data or {})
        # More may be recorded of data today than when the run began.
        now = {key: value for key, value in now.items() if key in before or not before}
        if differing := _differing(before, now):
            raise UserError(
                f'--workdir={self.path}: the training data has changed since that run began: '
                f'{differing}; give another folder, or the same data to resume it'
            )
        return True

    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None while the run is not finished."""
        return storage.read_json(self.path / 'result.json')

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2) + '\n').encode())

    def write_table(self, name: str, columns: tuple[str, ...], rows: Sequence[tuple]) -> None:
        """A table of tab-separated values with a header line."""
        lines = ('\t'.join(map(str, row)) for row in [columns, *rows])
        self.write_bytes(name, ('\n'.join(lines) + '\n').encode())

    def write_npz(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # `allow_pickle` is no array
        self.write_bytes(name, buffer.getvalue())

    def write_curves(self, metrics: Sequence[str]) -> None:
        """curves.png: metrics by name over steps, by split."""
        if self.writes:
            self.write_bytes('curves.png', _draw_curves(read_metrics(self.path), metrics))

    def open_metrics(
        self, step: int, make_room: Callable[[], None] = lambda: None
    ) -> 'MetricsLog | NoLog':
        """The log of a run. Args: as of `MetricsLog`."""
        return MetricsLog(self.path, step, make_room) if self.writes else NoLog()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replaces a file of the folder whole."""
        if self.writes:
            storage.write(self.path / name, data)


def read_config(workdir: str | Path) -> dict[str, Any]:
    """The content of config.json, with the config as it would be written today (changes.py).
    UserError if the folder is not a run.
    """
    found = storage.read_json(storage.path(workdir) / 'config.json')
    if found is None:
        raise UserError(
            f'{str(workdir)!r} is not a run directory (it has no config.json); '
            'give the --workdir of a run'
        )
    return {**found, 'config': changes.current(found['config'], changes.CHANGES)}


class MetricsLog:
    """Appends lines to metrics.jsonl, and the same numbers to TensorBoard.

    Lines are on disk before a checkpoint of their step begins, so after a kill the log holds every
    line up to the checkpoint that the run resumes from, and those after it are taken out.
    """

    def __init__(
        self, workdir: storage.Path, step: int, make_room: Callable[[], None] = lambda: None
    ):
        """Opens the log of a run that continues after `step`; `make_room` as of `Appender`."""
        kept = [line for line in read_metrics(workdir) if line['step'] <= step]
        # Test is read once, at the very end: a line of it belongs to an end that was cut off.
        kept = [line for line in kept if line['split'] != 'test']
        text = ''.join(json.dumps(line) + '\n' for line in kept)
        storage.write(workdir / METRICS, text.encode())
        self._lines = storage.Lines(workdir / METRICS, durable=True, make_room=make_room)
        self._board = Board(workdir / 'tensorboard', step)

    def append(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._lines.append({'step': step, 'split': split, **values})
        self._board.append(step, {f'{split}/{name}': value for name, value in values.items()})

    def sync(self) -> None:
        """Has all lines on the disk, or in the bucket."""
        self._lines.sync()
        self._board.sync()

    def close(self) -> None:
        self._lines.close()
        self._board.close()


class Board:
    """Numbers as TensorBoard reads them. What the disk refuses ends no run.

    tensorboardX's SummaryWriter blocks for good once its thread could not write, and neither it nor
    a bucket can append there; hence its writer of files without the thread, and copies.
    """

    def __init__(self, folder: storage.Path, step: int):
        """Begins a file of a run that continues after `step`."""
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


class NoLog:
    """The log of a process that writes nothing."""

    def append(self, step: int, split: str, values: Mapping[str, float]) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(workdir: storage.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that was cut off by a kill is left out."""
    return storage.read_lines(workdir / METRICS)


def val_of(lines: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """The val metrics by step, of the lines of metrics.jsonl."""
    return {
        line['step']: {k: v for k, v in line.items() if k not in ('step', 'split')}
        for line in lines
        if line['split'] == 'val'
    }


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with every field of its model, in the form of config.json."""
    from jaxtrain.models import with_defaults  # imports JAX

    return _as_json({**config, 'model': with_defaults(config['model'])})


def _as_json(value: Any) -> Any:
    """A value as it is read back from JSON: tuples become lists."""
    return json.loads(json.dumps(value))


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], but: tuple[str, ...] = ()) -> str:
    """The first keys whose values differ, in words; '' if none does."""
    old, new = dict(flatten(old)), dict(flatten(new))
    found = [
        f'{key} is {old.get(key)!r} there and {new.get(key)!r} here'
        for key in sorted({*old, *new})
        if key not in but and old.get(key) != new.get(key)
    ]
    return '; '.join(found[:3]) + (' ...' if len(found) > 3 else '')


def _draw_curves(lines: list[dict[str, Any]], metrics: Sequence[str]) -> bytes:
    from matplotlib.figure import Figure

    names = [n for n in metrics if any(n in line for line in lines)] or ['loss']
    figure = Figure(figsize=(4.5 * len(names), 3.4), layout='constrained')
    for number, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), number + 1)
        for split, style in (('train', '-'), ('val', 'o-'), ('test', 's')):
            points = [(x['step'], x[name]) for x in lines if x['split'] == split and name in x]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=split, ms=4, lw=1.4)
        axes.set(xlabel='step', ylabel=name)
        axes.grid(alpha=0.3)
        if lines:
            axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=120)
    return buffer.getvalue()


def provenance() -> dict[str, Any]:
    """What runs here: `versions` of packages by name, and the source tree's `git` revision."""
    versions = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {'versions': versions, 'git': _revision()}


@functools.cache
def _revision() -> str | None:
    """The commit of the source tree, with '+' and a digest where tracked files have changed.

    A copy without git may say it in a file REVISION (launch/tpu.py writes one); else None.
    """
    tree = Path(__file__).parents[2]
    if (tree / 'REVISION').exists():
        return (tree / 'REVISION').read_text().strip()
    try:
        head, changes = (
            subprocess.run(['git', '-C', tree, *words], capture_output=True, check=True).stdout
            for words in (['rev-parse', 'HEAD'], ['diff', 'HEAD'])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    changed = f'+{hashlib.sha256(changes).hexdigest()[:12]}' if changes else ''
    return head.decode().strip() + changed
