"""The training loop: what a config stands for, and the outline of a run."""
