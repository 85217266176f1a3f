"""The versions of packages and the revision of the source tree that a run is made with."""

import functools
import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ('jaxtrain', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def provenance() -> dict[str, Any]:
    """Return `versions` of packages by name, and the `git` revision of the source tree."""
    versions = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {'versions': versions, 'git': _revision()}


@functools.cache
def _revision() -> str | None:
    """Return the commit of the source tree, plus '+' and a digest if tracked files have changed.

    A copy without git may have it in a file REVISION, which launch/tpu.py writes. Otherwise the
    result is None.
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
