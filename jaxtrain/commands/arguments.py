"""Parsing of a command's arguments: flags, overrides of the config, and other words."""

import sys
from types import ModuleType
from typing import NamedTuple

from absl import flags as absl_flags

from jaxtrain.commands import flags
from jaxtrain.errors import UserError, nearest


class Arguments(NamedTuple):
    """The parsed arguments of a command.

    Attributes:
      flags: the values of its flags, as attributes.
      words: its other arguments.
      overrides: `--config.KEY=VALUE` arguments, for `config.files.load`.
    """

    flags: absl_flags.FlagValues
    words: list[str]
    overrides: list[str]


def parse(name: str, command: ModuleType, argv: list[str]) -> Arguments:
    """Parses the arguments after a command's name; for --help, prints the help and exits.

    Raises:
      UserError: an unknown flag, a value of the wrong type, or a missing required flag.
    """
    values = absl_flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow other words
    for define in command.FLAGS:
        define(values)
    takes_config = flags.config in command.FLAGS
    if any(word in ('-h', '--help') for word in argv):
        print(_help(name, command, values, takes_config))
        sys.exit(0)
    overrides = [w for w in argv if takes_config and w.lstrip('-').startswith('config.')]
    try:
        words = values(['jaxtrain', *(w for w in argv if w not in overrides)])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise UserError(
            f'there is no flag --{error.flagname}{nearest(error.flagname, values)}; '
            f'see jaxtrain {name} --help'
        ) from error
    except absl_flags.Error as error:
        raise UserError(f'{error}; see jaxtrain {name} --help') from error
    if words and not command.WORDS:
        raise UserError(f'{words[0]!r} is not a flag; see jaxtrain {name} --help')
    for flag in values:
        value, default = values[flag].value, values[flag].default
        if value is None and default is None:
            raise UserError(f'--{flag} is missing; see jaxtrain {name} --help')
        if isinstance(value, str) and not value.strip() and default != '':
            raise UserError(f'--{flag}={value} is empty; see jaxtrain {name} --help')
    return Arguments(values, words, overrides)


def summary(command: ModuleType) -> str:
    return (command.__doc__ or '').strip().splitlines()[0]


def _help(name: str, command: ModuleType, values: absl_flags.FlagValues, takes_config: bool) -> str:
    example = (command.__doc__ or '').strip().splitlines()[-1].strip()
    lines = [f'jaxtrain {name}: {summary(command)}', '', f'  {example}', '']
    if command.WORDS:
        lines.append(f'  {command.WORDS}')
    for flag in values:
        default = values[flag].default
        note = f' (default: {default})' if default not in (None, '') else ''
        lines.append(f'  --{flag:12} {values[flag].help}{note}')
    if takes_config:
        lines.append('  --config.KEY=VALUE  change a key; jaxtrain/config/keys.py documents them')
    return '\n'.join(lines)
