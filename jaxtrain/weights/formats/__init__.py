"""Weights file formats: each reader lists the arrays of a file and reads them one by one."""
