"""How long something lasts, as a text: '500 steps', '2.5 epochs', '10000 examples' or '5%'."""

import math
import re
from dataclasses import dataclass

from jaxtrain.errors import UserError


@dataclass(frozen=True)
class Run:
    """What durations are measured by.

    Attributes:
      steps: length of the run.
      batch_size: examples in a step.
      examples: in the training data.
    """

    steps: int
    batch_size: int
    examples: int

    def steps_in(self, count: float, unit: str) -> float:
        """So many 'steps', 'epochs', 'examples' or '%' of the run, in steps."""
        per_unit = {
            'steps': 1.0,
            'epochs': self.examples / self.batch_size,
            'examples': 1 / self.batch_size,
            '%': self.steps / 100,
        }
        return count * per_unit[unit]


def steps_of(text: str, where: str, run: Run) -> int:
    """A duration in steps, rounded up.

    Args:
      text: a number and a unit: step(s), epoch(s), example(s), or % of the run; without, steps.
      where: the config key, for messages.
      run: what it is measured by.

    Raises:
      UserError: not a duration.
    """
    found = re.fullmatch(r'\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*(%|(?:step|epoch|example)s?|)\s*', text)
    if not found:
        raise UserError(
            f"{where}={text!r} is not a duration; write it like '500 steps', '2.5 epochs', "
            "'10000 examples' or '5%'"
        )
    unit = found[2] if found[2] == '%' else f'{found[2].rstrip("s") or "step"}s'
    # Not up to the next step for what is a whole number but for rounding.
    return math.ceil(round(run.steps_in(float(found[1]), unit), 6))
