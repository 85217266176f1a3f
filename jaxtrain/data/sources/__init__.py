"""Sources of examples, one file each, and the `Source` that all of them return."""
