"""What a run prints: aligned lines, with colour and a progress bar on a terminal.

Without a terminal only plain lines are printed: no control characters, no progress bar.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# A longer table is summarized or truncated in print; a file has all of its lines.
SHORT = 16


class Terminal(AbstractContextManager):
    """Prints for one run; the progress bar is shown while its context is open.

    Args:
      quiet: whether to print only the progress bar.
      silent: whether to print nothing at all (all processes of a run but the first).
      title: the label of the progress bar.
    """

    def __init__(self, quiet: bool = False, silent: bool = False, title: str = 'train'):
        self._console = Console(quiet=silent, highlight=False, soft_wrap=True)
        self._quiet, self._title = quiet, title
        self._progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=silent or not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._columns: list[str] = []

    def __exit__(self, *error):
        self._progress.stop()

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False)

    def advance(self, step: int, steps: int) -> None:
        """Moves the progress bar, which appears with the first call."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=steps)
        self._progress.update(self._task, completed=step)

    def row(self, values: Mapping[str, str]) -> None:
        """Prints a row of a growing table, and its header before the first row."""
        if self._quiet:
            return
        widths = [max(len(name), 9) for name in values]
        if not self._columns:
            self._columns = list(values)
            header = '  '.join(f'{n:>{w}}' for n, w in zip(values, widths, strict=True))
            self._console.print(header, markup=False, style='bold')
        cells = zip(values.values(), widths, strict=True)
        self._console.print('  '.join(f'{v:>{w}}' for v, w in cells), markup=False)


def table(columns: tuple[str, ...], rows: Sequence[tuple]) -> str:
    """A table as aligned text: columns of numbers to the right, all others to the left."""
    cells = [[str(c) for c in columns], *[[_cell(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    left = [all(not isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    return '\n'.join(
        '  '.join(
            f'{cell:<{w}}' if is_left else f'{cell:>{w}}'
            for cell, w, is_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in cells
    )


def predictions(result: Mapping[str, Any]) -> str:
    """A summary of the result of `predict`: its first lines, and the file that has all of them."""
    lines = result['predictions']
    text = [_predicted(lines[:SHORT], result['columns'])]
    if len(lines) > SHORT:
        text.append(f'... and {len(lines) - SHORT:,} more')
    if result['skipped']:
        text.append(f'left out, not readable: {", ".join(result["skipped"])}')
    text.append(
        f'{len(lines):,} {result["unit"]}, checkpoint {result["step"]}, '
        f'written to {result["output"]}'
    )
    return '\n'.join(text)


def _predicted(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    places = [f'{x["file"]}:{x["line"]}' if 'line' in x else x['file'] for x in lines]
    if columns:
        cells = [[_shown(x[name]) for name in columns] for x in lines]
        rows: list[tuple] = [(place, *row) for place, row in zip(places, cells, strict=True)]
        return table(('file', *columns), rows)
    if 'embedding' in lines[0]:
        rows = [(place, len(x['embedding'])) for place, x in zip(places, lines, strict=True)]
        return table(('file', 'numbers'), rows)
    # Only the end of a prompt is shown, but its whole continuation.
    texts = (f'{x["prompt"][-60:]} |{x["text"]}' for x in lines)
    return '\n'.join(f'{p}: {" ".join(t.split())}' for p, t in zip(places, texts, strict=True))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f'{value:.3f}'
    return ', '.join(map(_shown, value)) if isinstance(value, list) else str(value)


def number(value: float) -> str:
    """A number with four significant digits, at most nine characters long."""
    return f'{value:.4g}' if abs(value) < 1e5 else f'{value:.2e}'


def _cell(value) -> str:
    if isinstance(value, float):
        return f'{value:g}'
    return f'{value:,}' if isinstance(value, int) else str(value)
