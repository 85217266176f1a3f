"""The command line: finds the command, parses its arguments, and turns errors into exit codes.

Commands import heavy libraries only when they run, so that `jaxtrain --help` is fast.
"""

import sys

from jaxtrain.commands import (
    compare,
    evaluate,
    export_weights,
    import_weights,
    inspect,
    plan,
    predict,
    status,
    train,
)
from jaxtrain.commands.arguments import parse, summary
from jaxtrain.errors import Preempted, UserError, nearest

COMMANDS = {
    'train': train,
    'status': status,
    'evaluate': evaluate,
    'predict': predict,
    'inspect': inspect,
    'plan': plan,
    'compare': compare,
    'import': import_weights,
    'export': export_weights,
}


def main(argv: list[str]) -> int:
    """Runs a command.

    Args:
      argv: the arguments after the program's name.

    Returns:
      The exit code: 0 finished, 2 wrong input, 42 preempted with the state saved, 130 interrupted.
    """
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(_overview())
        return 0
    if argv[0] == '--version':
        from jaxtrain import __version__

        print(__version__)
        return 0
    try:
        name, *words = argv
        if name not in COMMANDS:
            raise UserError(
                f'there is no command {name!r}{nearest(name, COMMANDS)}; see jaxtrain --help'
            )
        COMMANDS[name].run(parse(name, COMMANDS[name], words))
        return 0
    except UserError as error:
        if error.details:
            print(error.details, file=sys.stderr)
        print(f'jaxtrain: {" ".join(str(error).split())}', file=sys.stderr)
        return UserError.exit_code
    except Preempted as error:
        print(f'jaxtrain: {error}; start the same command again to go on', file=sys.stderr)
        return Preempted.exit_code
    except KeyboardInterrupt:
        print('jaxtrain: interrupted', file=sys.stderr)
        return 130


def entry() -> None:
    """Runs the console command `jaxtrain`."""
    sys.exit(main(sys.argv[1:]))


def _overview() -> str:
    lines = ['jaxtrain COMMAND [--flag=value ...]', '']
    lines += [f'  {name:10}{summary(command)}' for name, command in COMMANDS.items()]
    return '\n'.join([*lines, '', 'jaxtrain COMMAND --help describes a command.'])
