"""The files of a run directory, each of which is replaced as a whole.

| file            | content                                                                        |
|-----------------|--------------------------------------------------------------------------------|
| config.json     | the resolved config, class names and size of the data, the version of the      |
|                 | random streams and their seeds (streams.py), package versions, git revision    |
| params.tsv      | the parameter table                                                            |
| restore.json    | the restore plan, if weights were restored                                     |
| metrics.jsonl   | one JSON object per line: step, split, then numbers by name                    |
| events.jsonl    | the timeline of all starts (events.py)                                         |
| checkpoints/    | Orbax checkpoints                                                              |
| damaged/        | checkpoints that were moved here because they are damaged                      |
| stacks/         | what each process was doing when the run hung                                  |
| tensorboard/    | the metrics as TensorBoard event files                                         |
| test.npz        | the test metrics of every example, in the order of the split                   |
| result.json     | the summary; it exists once the run is finished                                |
| curves.png      | the metrics as a figure                                                        |
"""

import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain import storage
from jaxtrain.config import changes, streams
from jaxtrain.config.closed import flatten
from jaxtrain.config.keys import RESUMABLE
from jaxtrain.config.streams import Streams
from jaxtrain.errors import UserError
from jaxtrain.runs.curves import draw_curves
from jaxtrain.runs.metrics_log import MetricsLog, NoLog, read_metrics
from jaxtrain.runs.provenance import provenance


@dataclass(frozen=True)
class RunDir:
    """The files of a run. Among several processes only the first writes; all check and read.

    Attributes:
      path: the run directory.
      writes: whether this process writes.
    """

    path: storage.Path
    writes: bool = True

    def check_writable(self) -> None:
        """Make the folder. UserError if it cannot be made or written to."""
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f'.writable.{os.getpid()}'
            probe.write_bytes(b'')
            probe.unlink()
        except Exception as error:  # buckets raise types of their own
            raise UserError(
                f'--workdir={self.path} cannot be written ({storage.reason(error)}); give another '
                'folder'
            ) from error

    def claim(
        self,
        config: dict[str, Any],
        data: dict[str, Any] | None = None,
        numbers: Streams | None = None,
        unread: Iterable[str] = (),
    ) -> None:
        """Write config.json, or check that an existing one agrees.

        Args:
          config: the resolved config.
          data: the description of the training data (`Job.data`), if there is any.
          numbers: the random streams of the run, if it draws any numbers.
          unread: keys that the run does not read, and that may therefore differ.

        Raises:
          UserError: the folder belongs to a run with another config, or the data has changed.
        """
        if not self.check(config, data, unread):
            entries = {'config': config, **({'data': data} if data else {})}
            version = numbers.to_json() if numbers else {'streams': streams.VERSION}
            self.write_json('config.json', {**entries, **version, **provenance()})

    def check(
        self, config: dict[str, Any], data: dict[str, Any] | None = None, unread: Iterable[str] = ()
    ) -> bool:
        """Return whether a config.json exists; it must agree. Args and Raises as in `claim`."""
        written = storage.read_json(self.path / 'config.json')
        if written is None:
            return False
        streams.check(written, self.path)
        before = changes.current(written['config'], changes.CHANGES)
        if differing := _differing(
            _complete(before), _complete(config), skip={*RESUMABLE, *unread}
        ):
            raise UserError(
                f'--workdir={self.path} belongs to a run with another config: {differing}; '
                'give another folder, or the same config to resume it'
            )
        old, new = written.get('data', {}), _as_json(data or {})
        # This version may record more about the data than the one that began the run.
        new = {key: value for key, value in new.items() if key in old or not old}
        if differing := _differing(old, new):
            raise UserError(
                f'--workdir={self.path}: the training data has changed since that run began: '
                f'{differing}; give another folder, or the same data to resume it'
            )
        return True

    def result(self) -> dict[str, Any] | None:
        """Return the content of result.json, or None if the run is not finished."""
        return storage.read_json(self.path / 'result.json')

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2) + '\n').encode())

    def write_table(self, name: str, columns: tuple[str, ...], rows: Sequence[tuple]) -> None:
        """Write a table of tab-separated values with a header line."""
        lines = ('\t'.join(map(str, row)) for row in [columns, *rows])
        self.write_bytes(name, ('\n'.join(lines) + '\n').encode())

    def write_npz(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # `allow_pickle` is not an array
        self.write_bytes(name, buffer.getvalue())

    def write_curves(self, metrics: Sequence[str]) -> None:
        """Write curves.png: the named metrics and the learning rate over the steps."""
        if self.writes:
            name = '/'.join(self.path.parts[-3:])
            self.write_bytes('curves.png', draw_curves(read_metrics(self.path), metrics, name))

    def open_metrics(
        self, step: int, make_room: Callable[[], None] = lambda: None
    ) -> MetricsLog | NoLog:
        """Open the metrics log of a run. Args as in `MetricsLog`."""
        return MetricsLog(self.path, step, make_room) if self.writes else NoLog()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replace a file of the folder as a whole."""
        if self.writes:
            storage.write(self.path / name, data)


def read_config(workdir: str | Path) -> dict[str, Any]:
    """Read config.json, with the config as it would be written today (changes.py).

    Raises:
      UserError: the folder is not a run directory.
    """
    written = storage.read_json(storage.path(workdir) / 'config.json')
    if written is None:
        raise UserError(
            f'{str(workdir)!r} is not a run directory (it has no config.json); '
            'give the --workdir of a run'
        )
    return {**written, 'config': changes.current(written['config'], changes.CHANGES)}


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with every field of its model, in the form of config.json."""
    from jaxtrain.models import with_defaults  # imports JAX

    return _as_json({**config, 'model': with_defaults(config['model'])})


def _as_json(value: Any) -> Any:
    """Return a value as it is read back from JSON: tuples become lists."""
    return json.loads(json.dumps(value))


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], skip: Collection[str] = ()) -> str:
    """Describe the first three keys whose values differ; '' if all values agree."""
    old, new = dict(flatten(old)), dict(flatten(new))
    differences = [
        f'{key} is {old.get(key)!r} there and {new.get(key)!r} here'
        for key in sorted({*old, *new})
        if key not in skip and old.get(key) != new.get(key)
    ]
    return '; '.join(differences[:3]) + (' ...' if len(differences) > 3 else '')
