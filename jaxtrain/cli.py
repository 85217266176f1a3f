"""The command line: one command with sub-commands. It parses and calls; it decides nothing.

Nothing heavy is imported before a command needs it, so that `jaxtrain --help` answers at once.
"""

import os
import sys

from absl import flags

from jaxtrain.config import nearest
from jaxtrain.config_file import load
from jaxtrain.errors import Preempted, UserError


def main(argv: list[str]) -> int:
    """Runs a command.

    Args:
      argv: the words after the program's name.

    Returns:
      The exit code: 0 finished, 2 wrong input, 42 preempted with the state saved.
    """
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(_overview())
        return 0
    if argv[0] == '--version':
        from jaxtrain import __version__

        print(__version__)
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise UserError(
                f'there is no command {argv[0]!r}{nearest(argv[0], COMMANDS)}; see jaxtrain --help'
            )
        return COMMANDS[argv[0]](argv[1:]) or 0
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
    """The console command."""
    sys.exit(main(sys.argv[1:]))


def train(argv: list[str]) -> None:
    """Train what the config says; with the same --workdir it goes on where it stopped.

    jaxtrain train --config=configs/alphabets.py:full --workdir=runs/alphabets/full
    """
    values = _parse(train, argv, config=True, workdir='run directory', processes=True)
    cfg = load(values.config, _overrides(argv))
    _start_jax(values)
    import jax

    from jaxtrain.loop import train as run_train
    from jaxtrain.terminal import Terminal

    run_train(cfg, values.workdir, Terminal(silent=jax.process_index() > 0))


def evaluate(argv: list[str]) -> None:
    """Evaluate a checkpoint of a run on a split; no training data is opened.

    jaxtrain evaluate --workdir=runs/alphabets/full --split=test --checkpoint=best
    """
    values = _parse(evaluate, argv, workdir='run directory', checkpoint=True)
    _start_jax()
    from jaxtrain.evaluate import evaluate_run
    from jaxtrain.terminal import number

    found = evaluate_run(values.workdir, values.split, values.checkpoint)
    said = '  '.join(f'{name}={number(value)}' for name, value in found['metrics'].items())
    print(f'{found["split"]}  step={found["step"]}  examples={found["examples"]}  {said}')


def inspect(argv: list[str]) -> None:
    """Print the parameter table and the restore plan of a config; nothing is trained.

    jaxtrain inspect --config=configs/alphabets.py:linear
    """
    values = _parse(inspect, argv, config=True)
    cfg = load(values.config, _overrides(argv))
    _start_jax()
    from jaxtrain.inspect import inspect as run_inspect

    print(run_inspect(cfg))


def compare(argv: list[str]) -> None:
    """Train the variants of a config side by side: table, plot, verdict.

    jaxtrain compare --config=configs/alphabets.py --workdir=runs/compare
    """
    values = _parse(compare, argv, config=True, workdir='folder of the comparison', full=True)
    _start_jax()
    from jaxtrain.compare import compare as run_compare

    run_compare(values.config, _overrides(argv), values.workdir, values.full)


COMMANDS = {f.__name__: f for f in (train, evaluate, inspect, compare)}


def _parse(
    command,
    argv: list[str],
    config: bool = False,
    workdir: str = '',
    checkpoint: bool = False,
    processes: bool = False,
    full: bool = False,
) -> flags.FlagValues:
    """Defines the flags of a command and parses them; --config.key=value words are left to `load`.

    Raises:
      UserError: an unknown flag, a value of the wrong type, or a required flag not given.
    """
    values = flags.FlagValues()
    required = []
    if config:
        _string(values, 'config', None, 'config file, or FILE.py:VARIANT')
        required.append('config')
    if workdir:
        _string(values, 'workdir', None, workdir)
        required.append('workdir')
    if checkpoint:
        _string(values, 'split', 'test', "the run's 'train', 'val' or 'test', or any TFDS split")
        _string(values, 'checkpoint', 'best', "'best', 'last' or a step")
    if full:
        _string(values, 'full', '', 'finished run to start the arms from; none is trained then')
    if processes:
        _string(values, 'coordinator', '', 'host:port of process 0, when several processes train')
        flags.DEFINE_integer('processes', 1, 'how many processes train', flag_values=values)
        flags.DEFINE_integer('process', 0, 'number of this process', flag_values=values)
    if any(word in ('-h', '--help') for word in argv):
        print(_help(command, values, config))
        sys.exit(0)
    own = argv if not config else [w for w in argv if not w.lstrip('-').startswith('config.')]
    try:
        rest = values(['jaxtrain', *own])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(
            f'there is no flag --{error.flagname}{nearest(error.flagname, values)}; '
            f'see jaxtrain {command.__name__} --help'
        ) from error
    except flags.Error as error:
        raise UserError(f'{error}; see jaxtrain {command.__name__} --help') from error
    if rest:
        raise UserError(f'{rest[0]!r} is not a flag; see jaxtrain {command.__name__} --help')
    for name in required:
        if not values[name].value:
            raise UserError(f'--{name} is missing; see jaxtrain {command.__name__} --help')
    return values


def _string(values: flags.FlagValues, name: str, default: str | None, text: str) -> None:
    flags.DEFINE_string(name, default, text, flag_values=values)


def _overrides(argv: list[str]) -> list[str]:
    return [word for word in argv if word.lstrip('-').startswith('config.')]


def _start_jax(values: flags.FlagValues | None = None) -> None:
    """What must happen before a device is touched."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # XLA's own chatter
    from absl import logging

    from jaxtrain import mesh

    logging.set_verbosity(logging.ERROR)
    mesh.use_compilation_cache()
    if values is not None:
        mesh.start_processes(values.coordinator, values.processes, values.process)


def _overview() -> str:
    lines = ['jaxtrain COMMAND [--flag=value ...]', '']
    lines += [f'  {name:10}{_summary(f)}' for name, f in COMMANDS.items()]
    return '\n'.join([*lines, '', 'jaxtrain COMMAND --help explains each.'])


def _help(command, values: flags.FlagValues, config: bool) -> str:
    example = command.__doc__.strip().splitlines()[-1].strip()
    lines = [f'jaxtrain {command.__name__}: {_summary(command)}', '', f'  {example}', '']
    for name in values:
        default = values[name].default
        said = f' (default: {default})' if default not in (None, '') else ''
        lines.append(f'  --{name:12} {values[name].help}{said}')
    if config:
        lines.append('  --config.KEY=VALUE  changes a key; jaxtrain/config.py lists them')
    return '\n'.join(lines)


def _summary(command) -> str:
    return command.__doc__.strip().splitlines()[0]
