"""Meshes of devices, layouts on them, compilation for them, and replicas."""
