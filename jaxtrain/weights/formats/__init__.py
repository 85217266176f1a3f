"""File formats of weights: what is in a file, read array by array."""
