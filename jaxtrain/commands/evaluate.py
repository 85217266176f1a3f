"""Evaluate a checkpoint of a run on a split; no training data is opened.

jaxtrain evaluate --workdir=runs/alphabets/full --split=test --checkpoint=best
"""

from absl.flags import FlagValues

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments
from jaxtrain.commands.start import start_jax


def _split(values: FlagValues) -> None:
    text = "the run's 'train', 'val' or 'test', or another of its data"
    flags.string(values, 'split', 'test', text)


FLAGS = (flags.workdir, _split, flags.checkpoint)
WORDS = ''


def run(given: Arguments) -> None:
    values = given.flags
    start_jax()
    from jaxtrain.inference.trained import evaluate
    from jaxtrain.terminal import number

    found = evaluate(values.workdir, values.split, values.checkpoint)
    metrics = '  '.join(f'{name}={number(value)}' for name, value in found['metrics'].items())
    print(f'{found["split"]}  step={found["step"]}  examples={found["examples"]}  {metrics}')
