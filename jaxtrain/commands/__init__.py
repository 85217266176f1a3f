"""The commands, one file each: its flags, its arguments, one call.

A command is a module with a docstring (whose first line is the summary and whose last line is an
example), `FLAGS` (functions of flags.py or of the module, which define its flags), `WORDS` (a
description of its other arguments; '' if it takes none) and `run`, which takes the parsed
`Arguments`. cli.py has the table of commands.
"""
