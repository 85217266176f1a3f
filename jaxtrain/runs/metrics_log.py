"""The lines of metrics.jsonl: read, and appended while a run goes on."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxtrain import storage
from jaxtrain.runs.trackers.tensorboard import Board

METRICS = 'metrics.jsonl'


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
