"""jaxtrain: scratch, full and fine-tuned training in JAX, as one line of a config."""

__version__ = '0.1.0'
