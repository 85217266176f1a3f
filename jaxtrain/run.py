"""The run directory: config, tables, metrics, result and curves; nothing in it is half-written.

| file            | what                                                                           |
|-----------------|--------------------------------------------------------------------------------|
| config.json     | the resolved config, classes and size of the data, versions, git revision      |
| params.tsv      | the parameter table                                                            |
| restore.json    | the restore plan, when weights were restored                                   |
| metrics.jsonl   | one JSON object a line: step, split, then numbers by name                      |
| checkpoints/    | Orbax                                                                          |
| tensorboard/    | the same numbers as event files                                                |
| test.npz        | the test metrics of every example, in the order of the split                   |
| result.json     | the summary; its presence says that the run is finished                        |
| curves.png      | the curves, for looking                                                        |
"""

import io
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.config import RESUMABLE, flatten
from jaxtrain.errors import UserError

PACKAGES = ('jaxtrain', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def write(path: Path, data: bytes) -> None:
    """Replaces a file whole: a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_bytes(data)
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class RunDir:
    """The files of a run. Of several processes only the first writes; the others check and read.

    Attributes:
      path: the folder.
      writes: whether this process writes.
    """

    path: Path
    writes: bool = True

    def check_writable(self) -> None:
        """Makes the folder. UserError if that cannot be done or nothing can be written there."""
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f'.writable.{os.getpid()}'
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f'--workdir={self.path} cannot be written ({error.strerror}); give another folder'
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
            self.write_json('config.json', {**_entries(config, data), **_provenance()})

    def check(self, config: dict[str, Any], data: dict[str, Any] | None = None) -> bool:
        """Whether there is a config.json that says the same. Args, raises: as `claim`."""
        existing, ours = read_json(self.path / 'config.json'), _entries(config, data)
        if existing is None:
            return False
        if differing := _differing(existing['config'], ours['config'], but=RESUMABLE):
            raise UserError(
                f'--workdir={self.path} belongs to a run with another config: {differing}; '
                'give another folder, or the same config to resume it'
            )
        if differing := _differing(existing.get('data', {}), ours.get('data', {})):
            raise UserError(
                f'--workdir={self.path}: the training data has changed since that run began: '
                f'{differing}; give another folder, or the same data to resume it'
            )
        return True

    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None while the run is not finished."""
        return read_json(self.path / 'result.json')

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2) + '\n').encode())

    def write_table(self, name: str, columns: tuple[str, ...], rows: list[tuple]) -> None:
        """A table of tab-separated values with a header line."""
        lines = ('\t'.join(map(str, row)) for row in [columns, *rows])
        self.write_bytes(name, ('\n'.join(lines) + '\n').encode())

    def write_npz(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        self.write_bytes(name, buffer.getvalue())

    def write_curves(self) -> None:
        """curves.png: loss and the other metrics over steps, by split."""
        if self.writes:
            self.write_bytes('curves.png', _draw_curves(read_metrics(self.path)))

    def open_metrics(self, step: int) -> 'MetricsLog':
        """The log of a run that continues after `step`."""
        return MetricsLog(self.path, step) if self.writes else NoLog()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replaces a file of the folder whole."""
        if self.writes:
            write(self.path / name, data)


def read_config(workdir: str | Path) -> dict[str, Any]:
    """The content of config.json. UserError if the folder is not a run."""
    found = read_json(Path(workdir) / 'config.json')
    if found is None:
        raise UserError(
            f'{str(workdir)!r} is not a run directory (it has no config.json); '
            'give the --workdir of a run'
        )
    return found


class MetricsLog:
    """Appends lines to metrics.jsonl, and the same numbers to TensorBoard.

    Lines are on disk before a checkpoint of their step begins, so after a kill the log holds every
    line up to the checkpoint that the run resumes from, and those after it are taken out.
    """

    def __init__(self, workdir: Path, step: int):
        """Opens the log of a run that continues after `step`."""
        from tensorboardX import SummaryWriter

        self._path = workdir / 'metrics.jsonl'
        kept = [line for line in read_metrics(workdir) if line['step'] <= step]
        # Test is read once, at the very end: a line of it belongs to an end that was cut off.
        kept = [line for line in kept if line['split'] != 'test']
        write(self._path, ''.join(json.dumps(line) + '\n' for line in kept).encode())
        self._file = self._path.open('a')
        self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=step + 1)

    def append(self, step: int, split: str, values: Mapping[str, float]) -> None:
        line = {'step': step, 'split': split, **values}
        self._file.write(json.dumps(line) + '\n')
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in values.items():
            self._board.add_scalar(f'{split}/{name}', value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


class NoLog:
    """The log of a process that writes nothing."""

    def append(self, step: int, split: str, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that was cut off by a kill is left out."""
    path = workdir / 'metrics.jsonl'
    if not path.exists():
        return []
    lines = path.read_text().split('\n')
    # A whole line ends with a newline, so what follows the last newline is a torn line or nothing.
    return [json.loads(line) for line in lines[:-1]]


def _entries(config: dict[str, Any], data: dict[str, Any] | None) -> dict[str, Any]:
    """What config.json holds of a run, as it is read from there: tuples become lists."""
    return json.loads(json.dumps({'config': config, **({'data': data} if data else {})}))


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], but: tuple[str, ...] = ()) -> str:
    """The first keys whose values differ, in words; '' if none does."""
    old, new = dict(flatten(old)), dict(flatten(new))
    found = [
        f'{key} is {old.get(key)!r} there and {new.get(key)!r} here'
        for key in sorted({*old, *new})
        if key not in but and old.get(key) != new.get(key)
    ]
    return '; '.join(found[:3]) + (' ...' if len(found) > 3 else '')


def _draw_curves(lines: list[dict[str, Any]]) -> bytes:
    from matplotlib.figure import Figure

    names = [n for n in ('loss', 'accuracy') if any(n in line for line in lines)] or ['loss']
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


def _provenance() -> dict[str, Any]:
    versions = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {'versions': versions, 'git': _revision()}


def _revision() -> str | None:
    """The commit of the source tree, with '+' where it has local changes; None outside git."""
    git = ['git', '-C', str(Path(__file__).parent)]
    try:
        head, changes = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (['rev-parse', 'HEAD'], ['status', '--porcelain', '-uno'])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ('+' if changes.strip() else '')
