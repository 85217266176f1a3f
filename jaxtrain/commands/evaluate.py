"""Evaluate a checkpoint of a run on a split; open no training data.

jaxtrain evaluate --workdir=runs/alphabets/full --split=test --checkpoint=best
"""

from absl.flags import FlagValues

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments
from jaxtrain.commands.start import start_jax


def _split(values: FlagValues) -> None:
    text = "'train', 'val' or 'test' of the run, or another split of its data set"
    flags.string(values, 'split', 'test', text)


FLAGS = (flags.workdir, _split, flags.checkpoint)
WORDS = ''


def run(given: Arguments) -> None:
    values = given.flags
    start_jax()
    from jaxtrain.inference.trained import evaluate
    from jaxtrain.terminal import number

    result = evaluate(values.workdir, values.split, values.checkpoint)
    metrics = '  '.join(f'{name}={number(value)}' for name, value in result['metrics'].items())
    print(f'{result["split"]}  step={result["step"]}  examples={result["examples"]}  {metrics}')
