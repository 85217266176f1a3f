"""Train what the config describes; with the same --workdir, resume where it stopped.

jaxtrain train --config=configs/alphabets.py:full --workdir=runs/alphabets/full
"""

import os

from absl.flags import FlagValues

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments
from jaxtrain.commands.start import load_run, start_jax


def _processes(values: FlagValues) -> None:
    text = 'host:port of process 0, for several processes; not needed on Slurm or TPUs'
    flags.string(values, 'coordinator', '', text)
    flags.integer(values, 'processes', 0, 'number of processes; 0 to detect it on Slurm or TPUs')
    flags.integer(values, 'process', 0, 'index of this process')
    flags.integer(values, 'port', 0, 'port of process 0, if Slurm or the TPU provides its host')
    flags.number(values, 'start_timeout', 300.0, 'seconds to wait for all processes')


FLAGS = (flags.config, flags.workdir, _processes)
WORDS = ''


def run(given: Arguments) -> None:
    from jaxtrain.config.closed import flatten
    from jaxtrain.config.keys import RESUMABLE

    values = given.flags
    cfg = load_run(given)
    start_jax()
    from jaxtrain.loop.train import train
    from jaxtrain.pod import join, place
    from jaxtrain.runs.provenance import provenance
    from jaxtrain.terminal import Terminal

    asked = place.Place(values.processes, values.process, values.coordinator)
    metadata = place.tpu_metadata(os.environ)
    where = place.find_place(asked, values.port, os.environ, metadata)
    # The place of the data and the number of reading threads may differ between machines.
    config = {k: v for k, v in flatten(cfg.to_dict()) if k not in RESUMABLE or k[:5] != 'data.'}
    facts = provenance() | {'config': config, '--workdir': values.workdir}
    with join.join(where, dict(flatten(facts)), values.start_timeout) as pod:
        train(cfg, values.workdir, Terminal(silent=where.process > 0), pod)
