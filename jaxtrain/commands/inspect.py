"""Print the parameter table and the restore plan of a config; train nothing.

jaxtrain inspect --config=configs/alphabets.py:linear
"""

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments
from jaxtrain.commands.start import load_run, start_jax

FLAGS = (flags.config,)
WORDS = ''


def run(given: Arguments) -> None:
    cfg = load_run(given)
    start_jax()
    from jaxtrain.inspection.inspect import inspect

    print(inspect(cfg))
