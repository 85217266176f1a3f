"""The run directory: its files, its timeline, its clock."""
