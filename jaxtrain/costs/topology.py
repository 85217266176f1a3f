"""The devices of a TPU slice that is not attached, for its compiler, which needs no TPU."""

import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from jaxtrain.errors import UserError

# The dimensions of the torus of each generation, and further options for its compiler.
GENERATIONS = {
    'v4': (3, {'chip_config_name': 'megacore'}),
    'v5e': (2, {}),
    'v5p': (3, {}),
    'v6e': (2, {}),
}
# libtpu searches for the TPU that it runs on: first on a metadata server, then in the environment.
# With the values of one host set, it does neither, and prints nothing.
SILENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'TPU_LOG_DIR': 'disabled',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """The devices of one or more slices; programs can be compiled for them, but not run.

    From the first call on, the process computes on CPU: no TPU or GPU of this machine is used,
    unless it was in use before.

    Args:
      topology: GENERATION:SHAPE, such as 'v5e:4x4', the shape in chips.
      slices: the number of slices, which a slower network connects.

    Raises:
      UserError: the topology is unknown, `slices` is less than 1, or libtpu is not installed.
    """
    options = _options(topology)
    if slices < 1:
        raise UserError(f'--slices={slices} must be at least 1')
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(
            f"--topology={topology} needs the TPU's compiler; pip install 'jaxtrain[tpu]'"
        )
    os.environ.update({name: os.environ.get(name, value) for name, value in SILENT.items()})
    jax.config.update('jax_platforms', 'cpu')
    if slices > 1:
        options['num_slices'] = slices
    try:
        description = topologies.get_topology_desc(topology, platform='tpu', **options)
    except jax.errors.JaxRuntimeError as e:
        reason = str(e).splitlines()[0]
        raise UserError(f'--topology={topology} cannot be compiled for: {reason}') from e
    return list(description.devices)


def _options(topology: str) -> dict:
    match = re.fullmatch(r'([a-z0-9]+):(\d+(?:x\d+)*)', topology)
    generation, shape = match.groups() if match else ('', '')
    dimensions, options = GENERATIONS.get(generation, (0, {}))
    if not dimensions or shape.count('x') + 1 != dimensions:
        raise UserError(
            f'--topology={topology} is not understood; write GENERATION:SHAPE in chips, such as '
            "'v5e:4x4' or 'v6e:16x16' (two numbers), 'v4:2x2x2' or 'v5p:4x4x4' (three)"
        )
    return dict(options)
