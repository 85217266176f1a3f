"""Reading metrics.jsonl, and appending lines to it while a run trains."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxtrain import storage
from jaxtrain.runs.trackers.tensorboard import Board

METRICS = 'metrics.jsonl'


class MetricsLog:
    """Log that appends lines to metrics.jsonl, and the same numbers to TensorBoard.

    Lines are on disk before a checkpoint of their step is begun. After a kill, the log therefore
    has every line up to the checkpoint that the run resumes from, and later lines are removed.
    """

    def __init__(
        self, workdir: storage.Path, step: int, make_room: Callable[[], None] = lambda: None
    ):
        """Open the log of a run that continues after `step`; `make_room` as in `storage.Lines`."""
        kept = [line for line in read_metrics(workdir) if line['step'] <= step]
        # The test split is evaluated at the very end. A run that was killed after that evaluates it
        # again.
        kept = [line for line in kept if line['split'] != 'test']
        text = ''.join(json.dumps(line) + '\n' for line in kept)
        storage.write(workdir / METRICS, text.encode())
        self._lines = storage.Lines(workdir / METRICS, durable=True, make_room=make_room)
        self._board = Board(workdir / 'tensorboard', step)

    def append(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._lines.append({'step': step, 'split': split, **values})
        self._board.append(step, {f'{split}/{name}': value for name, value in values.items()})

    def sync(self) -> None:
        """Write all lines to the disk or the bucket."""
        self._lines.sync()
        self._board.sync()

    def close(self) -> None:
        self._lines.close()
        self._board.close()


class NoLog:
    """Log of a process that writes nothing."""

    def append(self, step: int, split: str, values: Mapping[str, float]) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(workdir: storage.Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl, except a last line that a kill has truncated."""
    return storage.read_lines(workdir / METRICS)


def val_of(lines: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Return the val metrics by step from the lines of metrics.jsonl."""
    return {
        line['step']: {k: v for k, v in line.items() if k not in ('step', 'split')}
        for line in lines
        if line['split'] == 'val'
    }
