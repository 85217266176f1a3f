"""Tasks: labels, loss and metrics, one file a task."""
