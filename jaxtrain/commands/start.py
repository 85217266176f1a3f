"""What a command does before JAX touches a device."""

import os


def start_jax() -> None:
    """Quietens the libraries, and has JAX keep what it compiles."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # XLA's own messages
    from absl import logging

    from jaxtrain.parallel import mesh

    logging.set_verbosity(logging.ERROR)
    mesh.use_compilation_cache()
