"""Checkpoints as they lie on the disk: named (best, last or a step), checked, and read in part."""

import asyncio
import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxtrain import storage
from jaxtrain.checkpoints import fingerprint
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.runs.metric import best_of
from jaxtrain.runs.run import read_config, read_metrics, val_of
from jaxtrain.tasks.tasks import best_metric

FOLDER = 'checkpoints'
# Seconds to wait for the reads or writes that are under way when one has failed.
UNDER_WAY = 60.0

# Orbax logs each error with its traceback before it raises it; here it is told in a line. And what
# it has not begun by then, it leaves.
warnings.filterwarnings('ignore', r"coroutine '.*Handler.*' was never awaited", RuntimeWarning)
logging.getLogger('absl').addFilter(lambda record: 'orbax' not in record.pathname)


class _Loop(asyncio.SelectorEventLoop):
    """Waits for what is under way before it closes.

    Orbax closes its loops at the first error. What ends at that time or later would print a
    traceback for each array, and writes would go on in a folder that is being removed.
    """

    def close(self) -> None:
        # A loop that is dropped while another one runs cannot be run any more.
        if not (self.is_closed() or self.is_running() or asyncio._get_running_loop()):
            self.run_until_complete(_rest(asyncio.all_tasks(self)))
        super().close()


async def _rest(left: set[asyncio.Task]) -> None:
    await asyncio.sleep(0)  # those that have ended just now tell it to whoever gathers them
    if left:
        done, _ = await asyncio.wait(left, timeout=UNDER_WAY)
        _ = [task.cancelled() or task.exception() for task in done]  # they are known


class _Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = _Loop


asyncio.set_event_loop_policy(_Policy())


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
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []


def best_step(run: str | Path) -> int | None:
    """The step with the best val metric, by the run's own config; None without metrics."""
    metric = best_metric(Config.from_json(read_config(run)['config']))
    return best_of(val_of(read_metrics(storage.path(run))), metric, saved_steps(run))


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """Nested abstract arrays of a checkpoint's state, with nothing read but its index.

    Raises:
      UserError: that is damaged.
    """
    with _readable(checkpoint):
        tree = index(checkpoint)
    return jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(tuple(m.shape), m.dtype),
        tree,
        is_leaf=lambda m: hasattr(m, 'shape'),
    )


def index(checkpoint: Path) -> Any:
    return ocp.PyTreeCheckpointHandler().metadata(checkpoint / 'state').tree


def read(checkpoint: Path, wanted: Any) -> Any:
    """Reads just the leaves that `wanted` names, onto its shardings.

    Args:
      checkpoint: as `find` returns it.
      wanted: nested dict of ShapeDtypeStructs with shardings, a part of the saved state.

    Raises:
      UserError: a leaf is missing or damaged.
    """
    with _readable(checkpoint):
        checks = read_host(checkpoint).get('fingerprints', {})
        restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
        with ocp.PyTreeCheckpointer() as reader:
            values = reader.restore(checkpoint / 'state', args=args)
    # Orbax hands back a placeholder for a key that the checkpoint lacks: never let one through.
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        if not isinstance(leaf, jax.Array):
            raise UserError(f'{checkpoint} has no value for {jax.tree_util.keystr(path)}')
    if changed := fingerprint.damaged(values, checks):
        raise UserError(f'{checkpoint} is damaged: {changed[0]} is not as it was saved; {_OTHER}')
    return values


@contextlib.contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file shows in as many ways as there are readers
        raise UserError(
            f'{checkpoint} cannot be read ({storage.reason(error)}); {_OTHER}'
        ) from error


_OTHER = 'choose another checkpoint, or put back a copy'


def read_host(place: Path) -> dict[str, Any]:
    """What a checkpoint keeps beside its arrays. ValueError if that is not what was saved."""
    file = place / 'host' / 'metadata'
    content = storage.read(file)
    if content is None:
        raise FileNotFoundError(f'it has no {file.relative_to(place)}')
    host = json.loads(content)
    if 'crc' in host and host.pop('crc') != crc(host):
        raise ValueError('its host values are not as they were saved')
    return host


def crc(host: Mapping[str, Any]) -> int:
    return fingerprint.of_text(json.dumps(host, sort_keys=True))


def folder_of(run: str | Path) -> Path:
    return storage.absolute(storage.path(run)) / FOLDER  # Orbax takes no relative path
