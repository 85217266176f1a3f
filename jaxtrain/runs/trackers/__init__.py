"""Services that record the metrics of a run, one per file."""
