"""Devices: meshes, compiling for them, replicas."""
