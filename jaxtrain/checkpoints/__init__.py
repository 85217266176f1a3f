"""Checkpoints: saved, checked, named, read in part."""
