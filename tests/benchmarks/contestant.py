"""What a contestant, in a process of its own, says at its end: one line of JSON."""

import json
import resource
import sys
from importlib.metadata import version


def report(steps_per_s: float, *packages: str) -> None:
    """Prints the speed, the largest memory that this process ever held, and versions.

    Args:
      steps_per_s: of the window that counts.
      packages: whose versions to tell.
    """
    unit = 2**20 if sys.platform == 'darwin' else 2**10
    measured = {
        'steps_per_s': steps_per_s,
        'peak_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        'versions': {name: version(name) for name in packages},
    }
    print(json.dumps(measured), flush=True)
