"""The command line: one command with sub-commands. It parses and calls; it decides nothing.

Nothing heavy is imported before a command needs it, so that `jaxtrain --help` answers at once.
"""

import os
import sys
from collections.abc import Callable

from absl import flags

from jaxtrain.config.closed import flatten
from jaxtrain.config.files import load
from jaxtrain.config.keys import RESUMABLE
from jaxtrain.errors import Preempted, UserError, nearest


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
    values, _ = _parse(train, argv, _config, _workdir, _processes)
    cfg = load(values.config, _overrides(argv))
    _start_jax()
    from jaxtrain.loop.train import train as run_train
    from jaxtrain.pod import join, place
    from jaxtrain.runs import run
    from jaxtrain.terminal import Terminal

    where = place.find_place(
        values.coordinator, values.processes, values.process, values.port, os.environ,
        place.tpu_metadata(os.environ),
    )  # fmt: skip
    # Where data lies, and by how many threads it is read, is each machine's own matter.
    config = {k: v for k, v in flatten(cfg.to_dict()) if k not in RESUMABLE or k[:5] != 'data.'}
    facts = run.provenance() | {'config': config, '--workdir': values.workdir}
    with join.join(where, dict(flatten(facts)), values.start_timeout) as pod:
        run_train(cfg, values.workdir, Terminal(silent=where.process > 0), pod)


def evaluate(argv: list[str]) -> None:
    """Evaluate a checkpoint of a run on a split; no training data is opened.

    jaxtrain evaluate --workdir=runs/alphabets/full --split=test --checkpoint=best
    """
    values, _ = _parse(evaluate, argv, _workdir, _split, _checkpoint)
    _start_jax()
    from jaxtrain.inference import trained
    from jaxtrain.terminal import number

    found = trained.evaluate(values.workdir, values.split, values.checkpoint)
    said = '  '.join(f'{name}={number(value)}' for name, value in found['metrics'].items())
    print(f'{found["split"]}  step={found["step"]}  examples={found["examples"]}  {said}')


def predict(argv: list[str]) -> None:
    """Say what a run makes of images or texts, or how it goes on with prompts.

    jaxtrain predict --workdir=runs/vgg16_folder photo.jpg holiday/
    """
    groups = (_workdir, _checkpoint, _predictions, _sampling)
    values, paths = _parse(predict, argv, *groups, words='PATH...')
    _start_jax()
    from jaxtrain.inference.predict import Sampling
    from jaxtrain.inference.predict import predict as run_predict
    from jaxtrain.terminal import predictions

    sampling = Sampling(
        values.new_tokens, values.temperature, values.top_k, values.top_p, values.seed
    )
    found = run_predict(
        values.workdir, paths, values.checkpoint, values.output, values.on_bad_image, values.top,
        sampling,
    )  # fmt: skip
    print(predictions(found))


def inspect(argv: list[str]) -> None:
    """Print the parameter table and the restore plan of a config; nothing is trained.

    jaxtrain inspect --config=configs/alphabets.py:linear
    """
    values, _ = _parse(inspect, argv, _config)
    cfg = load(values.config, _overrides(argv))
    _start_jax()
    from jaxtrain.inspection.inspect import inspect as run_inspect

    print(run_inspect(cfg))


def plan(argv: list[str]) -> None:
    """Say what a config would take, here or on a TPU slice: memory, time, cost; nothing is trained.

    jaxtrain plan --config=configs/full/imagenet_vit_s16.py --topology=v5e:4x4
    """
    values, _ = _parse(plan, argv, _config, _devices)
    cfg = load(values.config, _overrides(argv))
    _start_jax()
    from jaxtrain.inspection import plan as plans
    from jaxtrain.inspection import suggest
    from jaxtrain.runs import run

    words = (cfg, values.topology, values.slices, values.price)
    found = plans.plan(*words, say=_progress)
    content = plans.to_json(found)
    print(plans.to_text(found))
    if values.suggest:
        tried = suggest.suggest(*words, say=_progress)
        content['suggest'] = suggest.to_json(tried)
        print(f'\n{suggest.to_text(tried)}')
    run.write_json_file(values.output, content)


def status(argv: list[str]) -> None:
    """Say what a run is doing, how its time was spent, when it is done and why it stopped.

    jaxtrain status --workdir=runs/alphabets/full
    """
    values, _ = _parse(status, argv, _workdir, _json)
    _start_jax()
    import json

    from jaxtrain.inspection import status as states

    found = states.status(values.workdir)
    print(json.dumps(states.to_json(found)) if values.json else states.to_text(found))


def import_(argv: list[str]) -> None:
    """Turn weights from elsewhere into a run directory that config.init_from takes.

    jaxtrain import timm model.safetensors --model=vit_b16 --workdir=runs/vit_b16
    """
    values, words = _parse(import_, argv, _model, _workdir, _drop, words='ORIGIN FILE_OR_FOLDER')
    if len(words) != 2:
        raise UserError(
            f'import takes an origin and a file, not {" ".join(words) or "nothing"}; '
            'see jaxtrain import --help'
        )
    _start_jax()
    from jaxtrain.weights.import_weights import import_weights

    origin, file = words
    print(import_weights(origin, file, values.model, values.workdir, values.drop))


def export(argv: list[str]) -> None:
    """Write the weights of a run as safetensors, under the names of another framework.

    jaxtrain export --workdir=runs/vit_b16 --origin=timm --output=model.safetensors
    """
    values, _ = _parse(export, argv, _workdir, _checkpoint, _export)
    _start_jax()
    from jaxtrain.inference.export_weights import export_weights

    print(export_weights(values.workdir, values.checkpoint, values.origin, values.output))


def compare(argv: list[str]) -> None:
    """Train the variants of a config side by side: table, plot, verdict.

    jaxtrain compare --config=configs/alphabets.py --workdir=runs/compare
    """
    values, _ = _parse(compare, argv, _config, _workdir, _full)
    _start_jax()
    from jaxtrain.study.compare import compare as run_compare

    run_compare(values.config, _overrides(argv), values.workdir, values.full)


def _name(command) -> str:
    return command.__name__.rstrip('_')  # import is a word of Python's own


COMMANDS = {
    _name(f): f for f in (train, status, evaluate, predict, inspect, plan, compare, import_, export)
}


# The flags of the commands, by what they are for. One without a default must be given.


def _config(values: flags.FlagValues) -> None:
    _string(values, 'config', None, 'config file, or FILE.py:VARIANT')


def _workdir(values: flags.FlagValues) -> None:
    _string(values, 'workdir', None, 'run directory')


def _devices(values: flags.FlagValues) -> None:
    _string(values, 'topology', '', "TPU slice, such as 'v5e:4x4'; the devices here if empty")
    flags.DEFINE_integer('slices', 1, 'how many of it', flag_values=values)
    flags.DEFINE_float('price', 0.0, 'of a device-hour, for the cost', flag_values=values)
    text = 'try other meshes, accumulation, remat and batches for the fastest that fits'
    flags.DEFINE_bool('suggest', False, text, flag_values=values)
    _string(values, 'output', 'plan.json', 'file to write')


def _json(values: flags.FlagValues) -> None:
    flags.DEFINE_bool('json', False, 'one line of JSON, for programs', flag_values=values)


def _split(values: flags.FlagValues) -> None:
    _string(values, 'split', 'test', "the run's 'train', 'val' or 'test', or another of its data")


def _checkpoint(values: flags.FlagValues) -> None:
    _string(values, 'checkpoint', 'best', "'best', 'last' or a step")


def _predictions(values: flags.FlagValues) -> None:
    _string(values, 'output', '', 'file to write; predictions.jsonl in the run directory if empty')
    _string(values, 'on_bad_image', 'error', "'error', or 'skip' what cannot be read")
    flags.DEFINE_integer('top', 5, 'classes listed for each', flag_values=values)


def _sampling(values: flags.FlagValues) -> None:
    numbers: tuple[tuple[Callable, str, float, str], ...] = (
        (flags.DEFINE_integer, 'new_tokens', 64, 'of a language model: tokens to add to a prompt'),
        (flags.DEFINE_float, 'temperature', 1.0, '0 always takes the most probable token'),
        (flags.DEFINE_integer, 'top_k', 0, 'choose among so many most probable; 0 among all'),
        (flags.DEFINE_float, 'top_p', 1.0, 'choose among the most probable of this probability'),
        (flags.DEFINE_integer, 'seed', 0, 'of the choice'),
    )
    for define, name, default, text in numbers:
        define(name, default, text, flag_values=values)


def _model(values: flags.FlagValues) -> None:
    _string(values, 'model', None, 'what the weights are of, such as resnet50 or vit_b16')


def _drop(values: flags.FlagValues) -> None:
    text = 'regular expression of keys in the file that are not wanted; may be given again'
    flags.DEFINE_multi_string('drop', [], text, flag_values=values)


def _export(values: flags.FlagValues) -> None:
    _string(values, 'origin', None, 'whose names: torchvision, timm, huggingface, ...')
    _string(values, 'output', None, 'file to write')


def _full(values: flags.FlagValues) -> None:
    _string(values, 'full', '', 'finished run to start the arms from; none is trained then')


def _processes(values: flags.FlagValues) -> None:
    text = 'host:port of process 0, when several processes train; SLURM and TPUs tell it'
    _string(values, 'coordinator', '', text)
    numbers: tuple[tuple[Callable, str, float, str], ...] = (
        (flags.DEFINE_integer, 'processes', 0, 'how many train; 0: as SLURM or the TPU tells'),
        (flags.DEFINE_integer, 'process', 0, 'number of this process'),
        (flags.DEFINE_integer, 'port', 0, 'of process 0, where SLURM or the TPU tells its host'),
        (
            flags.DEFINE_float,
            'start_timeout',
            300.0,
            'seconds to wait for all processes',
        ),
    )
    for define, name, default, text in numbers:
        define(name, default, text, flag_values=values)


def _string(values: flags.FlagValues, name: str, default: str | None, text: str) -> None:
    flags.DEFINE_string(name, default, text, flag_values=values)


def _parse(
    command, argv: list[str], *groups: Callable, words: str = ''
) -> tuple[flags.FlagValues, list[str]]:
    """Defines the flags of a command and parses them; --config.key=value words are left to `load`.

    Args:
      command: one of COMMANDS.
      argv: the words after the command's name.
      *groups: what defines its flags.
      words: what its other words are; '' if it takes none.

    Returns:
      The flags, and the other words.

    Raises:
      UserError: an unknown flag, a value of the wrong type, or a required flag not given.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow other words
    for define in groups:
        define(values)
    name, takes_config = _name(command), _config in groups
    if any(word in ('-h', '--help') for word in argv):
        print(_help(command, values, words, takes_config))
        sys.exit(0)
    own = [w for w in argv if not (takes_config and w.lstrip('-').startswith('config.'))]
    try:
        rest = values(['jaxtrain', *own])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(
            f'there is no flag --{error.flagname}{nearest(error.flagname, values)}; '
            f'see jaxtrain {name} --help'
        ) from error
    except flags.Error as error:
        raise UserError(f'{error}; see jaxtrain {name} --help') from error
    if rest and not words:
        raise UserError(f'{rest[0]!r} is not a flag; see jaxtrain {name} --help')
    for flag in values:
        if values[flag].value in (None, '') and values[flag].default is None:
            raise UserError(f'--{flag} is missing; see jaxtrain {name} --help')
    return values, rest


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _overrides(argv: list[str]) -> list[str]:
    return [word for word in argv if word.lstrip('-').startswith('config.')]


def _start_jax() -> None:
    """What must happen before a device is touched."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # XLA's own chatter
    from absl import logging

    from jaxtrain.parallel import mesh

    logging.set_verbosity(logging.ERROR)
    mesh.use_compilation_cache()


def _overview() -> str:
    lines = ['jaxtrain COMMAND [--flag=value ...]', '']
    lines += [f'  {name:10}{_summary(f)}' for name, f in COMMANDS.items()]
    return '\n'.join([*lines, '', 'jaxtrain COMMAND --help explains each.'])


def _help(command, values: flags.FlagValues, words: str, takes_config: bool) -> str:
    example = command.__doc__.strip().splitlines()[-1].strip()
    lines = [f'jaxtrain {_name(command)}: {_summary(command)}', '', f'  {example}', '']
    if words:
        lines.append(f'  {words}')
    for name in values:
        default = values[name].default
        said = f' (default: {default})' if default not in (None, '') else ''
        lines.append(f'  --{name:12} {values[name].help}{said}')
    if takes_config:
        lines.append('  --config.KEY=VALUE  changes a key; jaxtrain/config/keys.py lists them')
    return '\n'.join(lines)


def _summary(command) -> str:
    return command.__doc__.strip().splitlines()[0]
