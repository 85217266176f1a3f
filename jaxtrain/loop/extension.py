"""Runs that are given more steps than they began with.

A step depends only on the state and on its number, so a run that becomes longer takes the same
steps as one that was as long from the start, provided that its learning rates are the same.
"""

from collections.abc import Sequence

import jax
import numpy as np

from jaxtrain.checkpoints import checkpoint_list
from jaxtrain.config import Config
from jaxtrain.config.durations import Run
from jaxtrain.errors import UserError
from jaxtrain.loop.job import Job, run_length
from jaxtrain.optim.schedules import make_schedule
from jaxtrain.runs.folder import RunDir, read_config

LENGTH = ('steps', 'epochs')


def check_begun(folder: RunDir, job: Job, unread: Sequence[str]) -> bool:
    """Checks that a job belongs to the run in the folder, if there is one.

    Args:
      folder: the run directory.
      job: the job.
      unread: keys that the job does not read, and that may therefore differ.

    Returns:
      Whether the job has more steps than the run, which it can continue.

    Raises:
      UserError: the run has another config, or cannot take more steps.
    """
    folder.check(job.config, job.data(), [*unread, *LENGTH])
    longer = is_longer(folder, job)
    if not longer:
        folder.check(job.config, job.data(), unread)
    return longer


def is_longer(folder: RunDir, job: Job) -> bool:
    """Whether the job has more steps than the run in the folder, which it can continue.

    Raises:
      UserError: it has more steps, but the run has taken steps with other learning rates.
    """
    if not (folder.path / 'config.json').exists():
        return False
    before = Config.from_json(read_config(folder.path)['config'])
    if not before.steps and not before.epochs:  # imported weights
        return False
    old = run_length(before, len(job.train))
    if old >= job.steps:
        return False
    reached = max(checkpoint_list.saved_steps(folder.path), default=0)
    if reached == 0 and folder.result():
        raise UserError(
            f'--workdir={folder.path} is finished, and has no checkpoint from which to take more '
            'steps; give another folder'
        )
    differs = _first_difference(job, old, reached)
    if differs is not None:
        raise UserError(
            f'--workdir={folder.path} belongs to a run of {old:,} steps, whose learning rate at '
            f'step {differs:,} would be another one in a run of {job.steps:,} steps '
            f'({", ".join(job.optimizer.schedules)}), and which has taken {reached:,}; give '
            f'another folder, where config.init_from={folder.path}, config.init_checkpoint=last '
            "(or a step) and config.regime='finetune' start a continuation from its weights"
        )
    return True


def extend(folder: RunDir, job: Job) -> None:
    """Records the new length in config.json, and that the run is not finished any more."""
    if not folder.writes:
        return
    written = read_config(folder.path)
    old = {key: written['config'][key] for key in LENGTH}
    new = {key: job.config[key] for key in LENGTH}
    earlier = [*written.get('extended', []), old]
    config = {**written['config'], **new}
    folder.write_json('config.json', {**written, 'config': config, 'extended': earlier})
    (folder.path / 'result.json').unlink(missing_ok=True)


def _first_difference(job: Job, old: int, reached: int) -> int | None:
    """The first of the steps taken whose learning rate depends on the length of the run."""
    batch_size, examples = job.cfg.batch_size, len(job.train)
    steps = np.arange(reached)
    for name in job.optimizer.schedules:
        before, now = (
            np.broadcast_to(jax.vmap(make_schedule(job.cfg.optim, name, run))(steps), steps.shape)
            for run in (Run(length, batch_size, examples) for length in (old, job.steps))
        )
        if (before != now).any():
            return int(np.argmax(before != now)) + 1
    return None
