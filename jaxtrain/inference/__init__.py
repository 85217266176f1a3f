"""A run put to use: evaluate, predict, generate, export."""
