"""Find the checkpoints of a run by name and step, without Orbax; only 'best' needs JAX.

A checkpoint lies at `RUN/checkpoints/STEP`. Orbax writes it under another name and renames it when
it is complete. In a bucket, where a folder cannot be renamed, Orbax adds a last file instead.
"""

from pathlib import Path

from jaxtrain import storage
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.runs.folder import read_config
from jaxtrain.runs.metric import best_of
from jaxtrain.runs.metrics_log import read_metrics, val_of

FOLDER = 'checkpoints'
# Orbax's mark of a complete checkpoint in a bucket.
COMMITTED = 'commit_success.txt'


def find(run: str | Path, name: str, where: str) -> Path:
    """Return the folder of a checkpoint of a finished or unfinished run.

    Args:
      run: the run directory.
      name: 'best' (by the run's val metric, or the last if there is no val metric), 'last', or a
        step number.
      where: the flag or config key, for messages.

    Raises:
      UserError: the folder is not a run, or the run does not have this checkpoint.
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
    """Return the steps of a run's complete checkpoints, in order."""
    folder = folder_of(run)
    if not folder.exists():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if _is_complete(path))


def best_step(run: str | Path) -> int | None:
    """Return the step with the best val metric by the run's config, or None without metrics."""
    val, steps = val_of(read_metrics(storage.path(run))), saved_steps(run)
    if not val or not steps:
        return None
    from jaxtrain.tasks.tasks import best_metric

    return best_of(val, best_metric(Config.from_json(read_config(run)['config'])), steps)


def folder_of(run: str | Path) -> Path:
    return storage.absolute(storage.path(run)) / FOLDER  # Orbax requires an absolute path


def _is_complete(path: storage.Path) -> bool:
    if not path.name.isdigit():
        return False
    return (path / COMMITTED).exists() if storage.is_remote(path) else path.is_dir()
