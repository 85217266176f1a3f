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

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain import storage
from jaxtrain.config import changes, streams
from jaxtrain.config.closed import flatten
from jaxtrain.config.keys import RESUMABLE
from jaxtrain.errors import UserError
from jaxtrain.runs.curves import draw_curves
from jaxtrain.runs.metrics_log import MetricsLog, NoLog, read_metrics
from jaxtrain.runs.provenance import provenance


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
            self.write_bytes('curves.png', draw_curves(read_metrics(self.path), metrics))

    def open_metrics(
        self, step: int, make_room: Callable[[], None] = lambda: None
    ) -> MetricsLog | NoLog:
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
