"""The training loop: a checked config as a job, and the outline of a run."""
