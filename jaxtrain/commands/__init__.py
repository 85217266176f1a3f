"""The commands, one file each: its flags, its words, one call.

A command is a module with a docstring (a line that says what it does, and an example), `FLAGS`
(functions of flags.py, or of its own, that define its flags), `WORDS` (what its other words are; ''
if it takes none) and `run`, which is given the parsed `Arguments`. The table of them is in cli.py.
"""
