"""Checkpoints: saving, resuming, checking, finding by name, reading in part."""
