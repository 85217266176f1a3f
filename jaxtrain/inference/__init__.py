"""Use of a trained model: evaluate, predict, generate, export."""
