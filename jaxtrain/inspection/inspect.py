"""Inspection of a config: the parameter table and the restore plan, with nothing allocated."""

from jaxtrain.config import Config
from jaxtrain.data.features import UNITS
from jaxtrain.inspection.prepare import prepare
from jaxtrain.params.table import COLUMNS
from jaxtrain.terminal import table
from jaxtrain.weights import restore


def inspect(cfg: Config) -> str:
    """Returns the text that `jaxtrain inspect` prints.

    Raises:
      UserError: anything that would prevent `train` from starting.
    """
    job = prepare(cfg)
    sizes = job.sizes()
    unit, size = UNITS[job.train.model_input.meaning], 'x'.join(map(str, job.train.shape))
    if job.train.tokenizer:
        size += f' of {job.train.tokenizer.size:,}'
    classes = f' of {len(job.train.classes)} classes' if job.train.classes else ''
    lines = [
        table(COLUMNS, job.table()),
        '',
        f'regime {job.regime}: {job.steps:,} steps of {cfg.batch_size} on {len(job.train):,} '
        f'examples{classes}, {unit} {size}',
        f'parameters {sizes["params_total"]:,}, trained {sizes["params_trainable"]:,}, '
        f'optimizer {sizes["opt_state_bytes"]:,} bytes',
    ]
    if job.start.plan:
        lines += ['', job.start.plan.summary(), restore.to_text(job.start.plan.leaves)]
    return '\n'.join([*lines, *job.remarks])
