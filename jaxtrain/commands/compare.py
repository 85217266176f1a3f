"""Train the variants of a config side by side: table, plot, verdict.

jaxtrain compare --config=configs/alphabets.py --workdir=runs/compare
"""

from absl.flags import FlagValues

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments
from jaxtrain.commands.start import start_jax


def _full(values: FlagValues) -> None:
    flags.string(values, 'full', '', 'finished run to start the arms from; none is trained then')


FLAGS = (flags.config, flags.workdir, _full)
WORDS = ''


def run(given: Arguments) -> None:
    values = given.flags
    start_jax()
    from jaxtrain.study.compare import compare

    compare(values.config, given.overrides, values.workdir, values.full)
