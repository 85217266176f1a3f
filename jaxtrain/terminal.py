"""What a run says: the same aligned lines everywhere, with colour and a progress bar on a terminal.

Without a terminal nothing but plain lines is printed: no control characters, no moving bars.
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

# Lines of a longer table are summed up or left out in print; a file has every one.
SHORT = 16


class Terminal(AbstractContextManager):
    """Prints for one run; a context, within which the progress bar lives.

    Args:
      quiet: say nothing but the progress bar.
      silent: say nothing at all (all processes of a run but the first).
      title: what the progress bar is called.
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
        """A line of a table that grows; its head is printed before the first line."""
        if self._quiet:
            return
        widths = [max(len(name), 9) for name in values]
        if not self._columns:
            self._columns = list(values)
            head = '  '.join(f'{n:>{w}}' for n, w in zip(values, widths, strict=True))
            self._console.print(head, markup=False, style='bold')
        cells = zip(values.values(), widths, strict=True)
        self._console.print('  '.join(f'{v:>{w}}' for v, w in cells), markup=False)


def table(columns: tuple[str, ...], rows: Sequence[tuple]) -> str:
    """Aligned text: first column to the left, numbers to the right."""
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


def predictions(found: Mapping[str, Any]) -> str:
    """What `predict` found, in short: the first lines, and where all of it is."""
    lines = found['predictions']
    said = [_predicted(lines[:SHORT], found['columns'])]
    if len(lines) > SHORT:
        said.append(f'... and {len(lines) - SHORT:,} more')
    if found['skipped']:
        said.append(f'left out, not readable: {", ".join(found["skipped"])}')
    said.append(
        f'{len(lines):,} {found["unit"]}, checkpoint {found["step"]}, written to {found["output"]}'
    )
    return '\n'.join(said)


def _predicted(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    places = [f'{x["file"]}:{x["line"]}' if 'line' in x else x['file'] for x in lines]
    if columns:
        found = [[_shown(x[name]) for name in columns] for x in lines]
        rows: list[tuple] = [(place, *cells) for place, cells in zip(places, found, strict=True)]
        return table(('file', *columns), rows)
    if 'embedding' in lines[0]:
        rows = [(place, len(x['embedding'])) for place, x in zip(places, lines, strict=True)]
        return table(('file', 'numbers'), rows)
    # A prompt is shown by its end, and what follows it whole.
    texts = (f'{x["prompt"][-60:]} |{x["text"]}' for x in lines)
    return '\n'.join(f'{p}: {" ".join(t.split())}' for p, t in zip(places, texts, strict=True))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f'{value:.3f}'
    return ', '.join(map(_shown, value)) if isinstance(value, list) else str(value)


def number(value: float) -> str:
    """Four significant digits, at most nine characters."""
    return f'{value:.4g}' if abs(value) < 1e5 else f'{value:.2e}'


def _cell(value) -> str:
    if isinstance(value, float):
        return f'{value:g}'
    return f'{value:,}' if isinstance(value, int) else str(value)
