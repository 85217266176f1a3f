"""What a command does before JAX touches a device."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtrain.commands.arguments import Arguments
    from jaxtrain.config import Config


def start_jax() -> None:
    """Silences the libraries and enables JAX's compilation cache; importing does neither."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # XLA's own messages
    from absl import logging

    from jaxtrain.checkpoints.process import tame_orbax
    from jaxtrain.data.images import quiet_pil
    from jaxtrain.parallel.compile import use_compilation_cache

    logging.set_verbosity(logging.ERROR)
    tame_orbax()
    quiet_pil()
    use_compilation_cache()


def load_run(given: Arguments) -> Config:
    """Loads the config of a single run; reports overrides of keys that only `compare` reads."""
    from jaxtrain.config.files import load

    cfg = load(given.flags.config, given.overrides)
    if keys := sorted(key for key in cfg.given if key.startswith('compare.')):
        text = ', '.join(f'config.{key}' for key in keys)
        print(f'ignored: {text} (only `jaxtrain compare` reads it)', file=sys.stderr)
    return cfg
