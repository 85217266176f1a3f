"""Weights from elsewhere: readers of file formats, and name maps, one file an origin."""
