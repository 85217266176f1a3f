"""TFDS data sets that are prepared without TensorFlow."""
