"""The run directory: its files, metrics log, curves, provenance, timeline and clock."""
