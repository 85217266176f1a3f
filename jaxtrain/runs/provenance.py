"""What a run was made with: versions of packages, and the revision of the source tree."""

import functools
import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ('jaxtrain', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def provenance() -> dict[str, Any]:
    """What runs here: `versions` of packages by name, and the source tree's `git` revision."""
    versions = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {'versions': versions, 'git': _revision()}


@functools.cache
def _revision() -> str | None:
    """The commit of the source tree, with '+' and a digest where tracked files have changed.

    A copy without git may say it in a file REVISION (launch/tpu.py writes one); else None.
    """
    tree = Path(__file__).parents[2]
    if (tree / 'REVISION').exists():
        return (tree / 'REVISION').read_text().strip()
    try:
        head, changes = (
            subprocess.run(['git', '-C', tree, *words], capture_output=True, check=True).stdout
            for words in (['rev-parse', 'HEAD'], ['diff', 'HEAD'])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    changed = f'+{hashlib.sha256(changes).hexdigest()[:12]}' if changes else ''
    return head.decode().strip() + changed
