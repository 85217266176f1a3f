"""The two ways a run ends on purpose before its last step, each with its exit code."""


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
