"""The two exceptions that end a run on purpose, exit codes, and text for error messages."""

import difflib
from typing import Any


class UserError(Exception):
    """Wrong input: one line that states the error, where it is and how to fix it; exit code 2.

    Args:
      message: the one line.
      details: optional lines printed before it, such as a restore plan leaf by leaf.
    """

    exit_code = 2

    def __init__(self, message: str, details: str = ''):
        super().__init__(message)
        self.details = details


class Preempted(Exception):
    """Stopped from outside with the state saved: start the same command again; exit code 42."""

    exit_code = 42


def exit_code(error: BaseException | None) -> int:
    """The exit code of a process: 0 finished, 2, 42, 130 after Ctrl-C, 1 for a crash."""
    if error is None:
        return 0
    return 130 if isinstance(error, KeyboardInterrupt) else getattr(error, 'exit_code', 1)


def one_line(error: BaseException | None) -> str:
    """The message of an error as one line; for a crash, with the type of the exception."""
    if error is None:
        return ''
    text = ' '.join(str(error).split())[:300]
    if exit_code(error) == 1:
        return f'{type(error).__name__}: {text}'
    return text or type(error).__name__


def nearest(word: Any, known) -> str:
    """`' (did you mean X?)'` for the nearest known word, or `''`."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f' (did you mean {close[0]!r}?)' if close else ''
