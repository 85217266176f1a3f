"""The report of a contestant process at its end: one line of JSON."""

import json
import resource
import sys
from importlib.metadata import version


def report(steps_per_s: float, *packages: str) -> None:
    """Prints the speed, the peak memory of this process, and versions.

    Args:
      steps_per_s: the speed of the timed steps.
      packages: the packages whose versions are reported.
    """
    unit = 2**20 if sys.platform == 'darwin' else 2**10
    measured = {
        'steps_per_s': steps_per_s,
        'peak_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        'versions': {name: version(name) for name in packages},
    }
    print(json.dumps(measured), flush=True)
