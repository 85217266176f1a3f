"""Durations as text: '500 steps', '2.5 epochs', '10000 examples' or '5%' of the run."""

import math
import re
from dataclasses import dataclass

from jaxtrain.config import streams
from jaxtrain.errors import UserError


@dataclass(frozen=True)
class Run:
    """The sizes of a run that convert durations to steps, and the version of its numbers.

    Attributes:
      steps: length of the run.
      batch_size: examples per step.
      examples: size of the training data.
      version: the version that it recorded (streams.py).
    """

    steps: int
    batch_size: int
    examples: int
    version: int = streams.VERSION

    def steps_in(self, count: float, unit: str) -> float:
        """Converts a number of 'steps', 'epochs', 'examples' or '%' of the run to steps."""
        per_unit = {
            'steps': 1.0,
            'epochs': self.examples / self.batch_size,
            'examples': 1 / self.batch_size,
            '%': self.steps / 100,
        }
        return count * per_unit[unit]


def steps_of(text: str, where: str, run: Run) -> int:
    """Converts a duration to steps, rounded up.

    Args:
      text: a number and a unit: step(s), epoch(s), example(s) or % of the run; steps by default.
      where: the config key, for messages.
      run: the sizes of the run.

    Raises:
      UserError: not a duration.
    """
    match = re.fullmatch(r'\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*(%|(?:step|epoch|example)s?|)\s*', text)
    if not match:
        raise UserError(
            f"{where}={text!r} is not a duration; write it like '500 steps', '2.5 epochs', "
            "'10000 examples' or '5%'"
        )
    unit = match[2] if match[2] == '%' else f'{match[2].rstrip("s") or "step"}s'
    # Round first, so that 3.0000001 stays 3.
    return math.ceil(round(run.steps_in(float(match[1]), unit), 6))
