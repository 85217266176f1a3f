"""Tasks: labels, loss and metrics, one file per task."""
