"""What a command does before JAX touches a device."""

import os


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
