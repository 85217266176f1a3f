"""The two ways a run ends on purpose before its last step, exit codes, and words for errors."""

import difflib
from typing import Any


class UserError(Exception):
    """Wrong input: one line that says what is wrong, where, and how to mend it; exit code 2.

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
    """What a process exits with: 0 finished, 2, 42, 130 after Ctrl-C, 1 for a crash."""
    if error is None:
        return 0
    return 130 if isinstance(error, KeyboardInterrupt) else getattr(error, 'exit_code', 1)


def one_line(error: BaseException | None) -> str:
    """What an error says, in a line; of a crash also its kind."""
    if error is None:
        return ''
    said = ' '.join(str(error).split())[:300]
    if exit_code(error) == 1:
        return f'{type(error).__name__}: {said}'
    return said or type(error).__name__


def nearest(word: Any, known) -> str:
    """`' (did you mean X?)'` for the nearest known word, or `''`."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f' (did you mean {close[0]!r}?)' if close else ''
