"""Which checkpoints a run has, by name and by step. Orbax is not needed here, JAX for 'best' alone.

A checkpoint lies at `RUN/checkpoints/STEP`. Orbax writes it under another name and renames it when
it is whole; in a bucket, where a folder cannot be renamed, it adds a last file.
"""

from pathlib import Path

from jaxtrain import storage
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.runs.folder import read_config
from jaxtrain.runs.metric import best_of
from jaxtrain.runs.metrics_log import read_metrics, val_of

FOLDER = 'checkpoints'
# Orbax's mark of a whole checkpoint in a bucket.
COMMITTED = 'commit_success.txt'


def find(run: str | Path, name: str, where: str) -> Path:
    """The folder of a checkpoint of a finished or unfinished run.

    Args:
      run: the run directory.
      name: 'best' (by the run's val metric, else the last), 'last' or a step number.
      where: the flag or config key, for messages.

    Raises:
      UserError: no run, no checkpoint, or not that one.
    """
    folder = folder_of(run)
    steps = saved_steps(run)
    if not steps:
        raise UserError(
            f'{where}={str(run)!r}: there is no checkpoint in {folder}; '
            'give the --workdir of a run that has saved one'
        )
    if name == 'last':
        return folder / str(steps[-1])
    if name == 'best':
        return folder / str(best_step(run) or steps[-1])
    if name not in map(str, steps):
        raise UserError(
            f"{where}: {folder} has no checkpoint {name!r}; choose 'best', 'last' or one of "
            f'{", ".join(map(str, steps))}'
        )
    return folder / name


def saved_steps(run: str | Path) -> list[int]:
    """The steps at which a run has whole checkpoints, in order."""
    folder = folder_of(run)
    if not folder.exists():
        return []
    return sorted(int(place.name) for place in folder.iterdir() if _is_whole(place))


def best_step(run: str | Path) -> int | None:
    """The step with the best val metric, by the run's own config; None without metrics."""
    from jaxtrain.tasks.tasks import best_metric

    metric = best_metric(Config.from_json(read_config(run)['config']))
    return best_of(val_of(read_metrics(storage.path(run))), metric, saved_steps(run))


def folder_of(run: str | Path) -> Path:
    return storage.absolute(storage.path(run)) / FOLDER  # Orbax takes no relative path


def _is_whole(place: storage.Path) -> bool:
    if not place.name.isdigit():
        return False
    return (place / COMMITTED).exists() if storage.is_remote(place) else place.is_dir()
