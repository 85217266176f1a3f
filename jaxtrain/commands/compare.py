"""Train variants of a config side by side and write a table, a plot and a verdict.

jaxtrain compare --config=configs/alphabets.py --workdir=runs/compare
"""

from absl.flags import FlagValues

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments
from jaxtrain.commands.start import start_jax


def _full(values: FlagValues) -> None:
    text = 'finished run that the arms start from; empty to train config.compare.pretrain first'
    flags.string(values, 'full', '', text)


FLAGS = (flags.config, flags.workdir, _full)
WORDS = ''


def run(given: Arguments) -> None:
    values = given.flags
    start_jax()
    from jaxtrain.study.compare import compare

    compare(values.config, given.overrides, values.workdir, values.full)
