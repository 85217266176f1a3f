"""Prints the manifest of a run on TPU slices in GKE, for `kubectl apply -f -`.

python launch/gke/render.py --name=vit --image=IMAGE --topology=v5e:4x4 --slices=2 -- \\
    --config=configs/full/imagenet_vit_s16.py --workdir=gs://BUCKET/vit | kubectl apply -f -

It requires only PyYAML: neither JAX nor jaxtrain, nor access to the cluster. Wrong input results in
one line on stderr and exit code 2.
"""

import argparse
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

TEMPLATE = Path(__file__).with_name('jobset.yaml')
SPOT = 'cloud.google.com/gke-spot'

# Slices of the 2-D generations, in chips; those of at most 8 chips have one host.
_SHAPES_2D = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
# Slices of the 3-D generations up to 64 chips; larger ones are multiples of 4 in each dimension.
_SHAPES_3D = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4')
# Generation -> its name in GKE, dimensions.
GENERATIONS = {
    'v4': ('tpu-v4-podslice', 3),
    'v5e': ('tpu-v5-lite-podslice', 2),
    'v5p': ('tpu-v5p-slice', 3),
    'v6e': ('tpu-v6e-slice', 2),
}


class WrongInput(Exception):
    """The user's input is wrong; the message is one line."""


class Slice(NamedTuple):
    """A TPU slice as GKE offers it.

    Attributes:
      accelerator: value of the node label cloud.google.com/gke-tpu-accelerator.
      shape: value of the node label cloud.google.com/gke-tpu-topology.
      hosts: the number of virtual machines, which are the nodes.
      chips_per_host: the number of chips of each, as google.com/tpu.
    """

    accelerator: str
    shape: str
    hosts: int
    chips_per_host: int


def parse_topology(topology: str) -> Slice:
    """Returns the slice that has a topology.

    Args:
      topology: GENERATION:SHAPE as in `jaxtrain plan`, such as 'v5e:4x4', the shape in chips.

    Raises:
      WrongInput: GKE does not have the generation or the shape.
    """
    generation, _, shape = topology.partition(':')
    if generation not in GENERATIONS or not re.fullmatch(r'[1-9]\d{0,2}(x[1-9]\d{0,2})*', shape):
        raise WrongInput(
            f'--topology={topology} is not understood; write GENERATION:SHAPE in chips, such as '
            f"'v5e:4x4' or 'v5p:2x2x4'; generations: {', '.join(GENERATIONS)}"
        )
    accelerator, dimensions = GENERATIONS[generation]
    known = _SHAPES_2D if dimensions == 2 else _SHAPES_3D
    sizes = [int(size) for size in shape.split('x')]
    chips = math.prod(sizes)
    large = (
        dimensions == 3
        and len(sizes) == 3
        and chips > 64
        and sizes == sorted(sizes)
        and all(size % 4 == 0 for size in sizes)
    )
    if shape not in known and not large:
        more = ', or larger AxBxC in multiples of 4 with A<=B<=C' if dimensions == 3 else ''
        raise WrongInput(
            f'--topology={topology}: GKE has no such slice; {generation} has '
            f'{", ".join(known)}{more}'
        )
    # A slice of v5e or v6e with up to 8 chips is one host; larger ones, v4 and v5p have 4 chips per
    # host.
    per_host = chips if dimensions == 2 and chips <= 8 else 4
    return Slice(accelerator, shape, chips // per_host, per_host)


def render(options: argparse.Namespace, words: list[str]) -> dict:
    """The manifest of a JobSet.

    Args:
      options: the options that `parse` returns.
      words: the arguments of `jaxtrain train`.

    Raises:
      WrongInput: one of the options is wrong.
    """
    _check(options, words)
    tpu = parse_topology(options.topology)
    if options.slices > 1 and tpu.hosts == 1:
        raise WrongInput(
            f'--slices={options.slices}: GKE joins only slices of several hosts, and '
            f'--topology={options.topology} has one; use a larger slice'
        )
    manifest = yaml.safe_load(TEMPLATE.read_text())
    (job,) = manifest['spec']['replicatedJobs']
    _check_pod_names(options.name, job['name'], options.slices, tpu.hosts)

    manifest['metadata']['name'] = options.name
    if options.namespace:
        manifest['metadata']['namespace'] = options.namespace
    if tpu.hosts == 1:
        # Slices of one host may share a node pool, which this annotation would forbid.
        del manifest['metadata']['annotations']
    manifest['spec']['failurePolicy']['maxRestarts'] = options.max_restarts
    job['replicas'] = options.slices
    job['template']['spec'] |= {'parallelism': tpu.hosts, 'completions': tpu.hosts}

    pod = job['template']['spec']['template']['spec']
    pod['nodeSelector'] = {
        'cloud.google.com/gke-tpu-accelerator': tpu.accelerator,
        'cloud.google.com/gke-tpu-topology': tpu.shape,
    }
    if options.service_account:
        pod['serviceAccountName'] = options.service_account
    if options.spot:
        pod['nodeSelector'][SPOT] = 'true'
        pod['tolerations'].append(
            {'key': SPOT, 'operator': 'Equal', 'value': 'true', 'effect': 'NoSchedule'}
        )
    (container,) = pod['containers']
    container['image'] = options.image
    container['args'] = [_literal(word) for word in words]
    given = dict(pair.split('=', 1) for pair in options.env)
    env = {entry['name']: entry['value'] for entry in container['env']}
    env |= {name: _literal(value) for name, value in given.items()}
    container['env'] = [{'name': name, 'value': value} for name, value in env.items()]
    for kind in ('requests', 'limits'):
        container['resources'][kind] = {'google.com/tpu': tpu.chips_per_host}
    return manifest


def to_yaml(manifest: dict) -> str:
    """The manifest as text that every YAML parser reads in the same way.

    PyYAML omits the quotes of a string if its own rules read it back as a string. kubectl's rules
    differ: it reads 1e3 as a number and y as a boolean. So all strings but plain words are quoted.
    """
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=math.inf)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the arguments after `--`.

    Raises:
      WrongInput: an option is unknown, missing or of the wrong type, or `--` is missing.
    """
    before, words = argv, None
    if '--' in argv:
        at = argv.index('--')
        before, words = argv[:at], argv[at + 1 :]
    parser = _Parser(prog='render.py', description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add('--name', required=True, help='name of the JobSet')
    add('--image', required=True, help='container image with jaxtrain[tpu] installed')
    add('--topology', required=True, help="TPU slice, such as 'v5e:4x4', in chips")
    add('--slices', type=int, default=1, help='number of slices (default: 1)')
    add('--namespace', default='', help='Kubernetes namespace')
    add('--service-account', default='', help='Kubernetes service account, for the bucket')
    add('--spot', action='store_true', help='use Spot nodes')
    add('--env', action='append', default=[], metavar='KEY=VALUE', help='may be repeated')
    add('--max-restarts', type=int, default=20, help='of all slices together (default: 20)')
    parser.usage = '%(prog)s --name=NAME --image=IMAGE --topology=v5e:4x4 [...] -- ARGUMENTS'
    parser.epilog = 'ARGUMENTS are those of jaxtrain train: --config=... --workdir=...'
    options = parser.parse_args(before)
    if words is None:
        raise WrongInput('the arguments of jaxtrain train are missing; give them after --')
    return options, words


def main(argv: list[str]) -> int:
    """Prints the manifest, and returns the exit code: 0, or 2 for wrong input."""
    try:
        text = to_yaml(render(*parse(argv)))
    except WrongInput as error:
        print(f'render.py: {error}', file=sys.stderr)
        return 2
    sys.stdout.write(text)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise WrongInput(f'{message}; see render.py --help')


class _Dumper(yaml.SafeDumper):
    """Indents lists within keys, and quotes all strings but plain words."""

    def increase_indent(self, flow=False, indentless=False):
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data):
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    plain = re.fullmatch(r'[A-Za-z][A-Za-z0-9./-]+', value)
    return dumper.represent_scalar('tag:yaml.org,2002:str', value, style=None if plain else '"')


_Dumper.add_representer(str, _text)


def _literal(value: str) -> str:
    """Escapes $, as Kubernetes replaces $(NAME) by the variable NAME, and $$ by a single $."""
    return value.replace('$', '$$')


def _check(options: argparse.Namespace, words: list[str]) -> None:
    label = r'[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?'
    patterns = (
        ('--name', r'[a-z]([-a-z0-9]*[a-z0-9])?', 'lower case letters, digits and -'),
        ('--namespace', rf'({label})?', 'lower case letters, digits and -'),
        ('--service-account', rf'({label}(\.{label})*)?', 'lower case letters, digits, - and .'),
        ('--image', r'[A-Za-z0-9][\w.:/@+-]*', 'the reference of an image, such as HOST/NAME:TAG'),
    )
    for option, pattern, meaning in patterns:
        value = getattr(options, option.strip('-').replace('-', '_'))
        if not re.fullmatch(pattern, value):
            start = ', starting with a letter' if option == '--name' else ''
            raise WrongInput(f'{option}={value!r} is not valid; it must be {meaning}{start}')
    if options.slices < 1:
        raise WrongInput(f'--slices={options.slices} must be at least 1')
    if options.max_restarts < 0:
        raise WrongInput(f'--max-restarts={options.max_restarts} must be at least 0')
    for pair in options.env:
        if not re.fullmatch(r'[A-Za-z_]\w*=.*', pair, re.DOTALL | re.ASCII):
            raise WrongInput(f'--env={pair!r} is not KEY=VALUE')
    for flag in ('--config', '--workdir'):
        if not any(word == flag or word.startswith(f'{flag}=') for word in words):
            raise WrongInput(f'{flag} is missing after --; jaxtrain train requires it')


def _check_pod_names(name: str, job: str, slices: int, hosts: int) -> None:
    """Rejects a name, as JobSet does, if the names of its pods would be too long for host names."""
    longest = f'{name}-{job}-{slices - 1}-{hosts - 1}-12345'
    if len(longest) > 63:
        over = len(longest) - 63
        raise WrongInput(f'--name={name} is {over} characters too long for the names of its pods')


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
