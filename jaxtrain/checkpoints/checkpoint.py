"""Save the state of a run with Orbax while training continues, and resume from it.

A checkpoint at `RUN/checkpoints/STEP` has `state` (the arrays of a TrainState, without its empty
parts) and `host` (JSON: the other values that the loop needs, and checksums). Orbax commits a
checkpoint by a rename, or in a bucket by writing a last file, so that an interrupted save is never
taken for a checkpoint; the next start removes it. Orbax does not notice when bits of an array
change on the disk. Each leaf therefore has a checksum (fingerprint.py), which is verified whenever
the leaf is read.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import tenacity
from jax.experimental import multihost_utils

from jaxtrain import storage
from jaxtrain.checkpoints import checkpoint_files, checkpoint_list, fingerprint
from jaxtrain.errors import UserError
from jaxtrain.step.state import TrainState

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

    from jaxtrain.checkpoints.manager import Manager

DAMAGED = 'damaged'
# Bytes per piece of an array, and per file. Orbax assembles a file in memory before it writes it:
# with a single file, saving took 1.9 times the memory of the state.
PIECE, FILE = 4 * 2**20, 16 * 2**20
# Fraction of the state that is read from the disk at the same time.
READ_FRACTION = 0.05
# Seconds that a process waits for the others to write their parts: one of them may have failed.
SAVE_TIMEOUT = 600
# Attempts to save a checkpoint, and the maximum number of seconds between two attempts.
ATTEMPTS, PAUSE = 4, 20.0


def open_manager(
    workdir: str | Path,
    keep: int,
    best: Callable[[Sequence[int]], int | None] = lambda steps: None,
) -> Manager:
    """Open the manager of a run's checkpoints, which keeps the `keep` latest and the best one.

    Args:
      workdir: the run directory.
      keep: how many of the latest checkpoints to keep, at least 1.
      best: function that returns the best of the given steps so far, or None.
    """
    import orbax.checkpoint as ocp

    from jaxtrain.checkpoints.manager import KeepLatestAndBest, Manager

    options = ocp.CheckpointManagerOptions(
        preservation_policy=KeepLatestAndBest(keep, best),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(timeout_secs=SAVE_TIMEOUT),
    )
    return Manager(checkpoint_list.folder_of(workdir), options=options)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    host: dict[str, Any],
    report: Callable[[str], None],
    wait: bool = False,
) -> None:
    """Start to save, and return once the arrays are copied. The state may then be donated.

    If the previous save has failed, the function waits until this one is on disk. An attempt that
    fails is repeated, up to `ATTEMPTS` times.

    Args:
      manager: as `open_manager` returns it.
      step: the step of the state. A checkpoint of this step that exists already is kept as it is.
      state: the state to save.
      host: JSON values to store with it.
      report: called with the reason when a save has failed.
      wait: whether to wait until the checkpoint is on disk.

    Raises:
      UserError: the checkpoint cannot be written. Earlier checkpoints remain intact.
    """
    failure = _settle(manager)
    if failure:
        report(f'a checkpoint could not be written ({storage.reason(failure)})')
    if step in manager.all_steps():
        return

    def before_retry(attempts: tenacity.RetryCallState) -> None:
        _recover(manager)
        report(f'step {step} could not be saved ({storage.reason(storage.failure(attempts))})')

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(max=PAUSE),
        before_sleep=before_retry,
        reraise=True,
    )

    def attempt() -> None:
        write(manager, step, state, host)
        if wait or failure:
            manager.wait_until_finished()

    try:
        retrying(attempt)
    except Exception as error:
        _recover(manager)
        last = max(manager.all_steps(), default=None)
        kept = f'the last one is of step {last}' if last is not None else 'there is no earlier one'
        raise UserError(
            f'the checkpoint of step {step} cannot be written to {manager.directory} '
            f'({storage.reason(error)}); {kept}. Make room or mend the disk, and start the same '
            'command again to go on'
        ) from error


def write(
    manager: ocp.CheckpointManager, step: int, state: TrainState, host: dict[str, Any]
) -> None:
    """Start to save as `save` does, but in one attempt, and raise any error unchanged."""
    import orbax.checkpoint as ocp

    parts = _parts(state)
    host = host | {'fingerprints': fingerprint.fingerprints(parts)}
    host['crc'] = checkpoint_files.crc(host)
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE), parts)
    args = ocp.args.Composite(
        state=ocp.args.PyTreeSave(parts, save_args=pieces, ocdbt_target_data_file_size=FILE),
        host=ocp.args.JsonSave(host),
    )
    manager.save(step, args=args, force=True)


def _settle(manager: ocp.CheckpointManager) -> Exception | None:
    """Wait for a pending save. If it has failed, remove its files and return the error."""
    try:
        manager.wait_until_finished()
        manager.check_for_errors()
    except Exception as error:  # the disk, the network and Orbax raise many types
        _recover(manager)
        return error
    return None


def _recover(manager: ocp.CheckpointManager) -> None:
    """Undo a failed save."""
    with contextlib.suppress(Exception):
        manager.wait_until_finished()
    _tidy(manager)
    # Orbax has already removed from its list the checkpoints that this save would have replaced.
    manager.reload()


def _tidy(manager: ocp.CheckpointManager) -> None:
    """Remove unfinished checkpoints. In a bucket they have their final names from the start."""
    if jax.process_index():
        return
    folder = storage.path(manager.directory)
    with contextlib.suppress(Exception):  # the next start removes them as well
        for path in folder.iterdir():
            committed = (path / checkpoint_list.COMMITTED).exists
            unfinished = storage.is_remote(folder) and not committed()
            if '.orbax-checkpoint-tmp' in path.name or unfinished:
                _remove(path)


def make_room(manager: ocp.CheckpointManager) -> None:
    """Remove the files of a failed save. The next save does so as well, but may be far off."""
    # False once all processes have finished or failed.
    if not manager.is_saving_in_progress():
        _tidy(manager)


def prune(
    manager: ocp.CheckpointManager, keep: int, best: Callable[[Sequence[int]], int | None]
) -> None:
    """Remove the checkpoints that the run does not keep, once the last one is evaluated too."""
    from jaxtrain.checkpoints.manager import kept_steps

    steps = manager.all_steps()
    for step in {*steps} - kept_steps(sorted(steps), keep, best):
        manager.delete(step)


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that was read; `damaged` has those that were tried before it: step -> reason."""

    step: int
    state: TrainState
    host: dict[str, Any]
    damaged: Mapping[int, str]


def resume(
    manager: ocp.CheckpointManager, abstract: TrainState, steps: Sequence[int]
) -> Resumed | None:
    """Read the first intact checkpoint among the given steps, without initialising a state first.

    Damaged checkpoints before it are moved to `RUN/damaged`, since the run saves those steps again.

    Args:
      manager: as `open_manager` returns it.
      abstract: the state's shapes, dtypes and shardings.
      steps: the steps to try, in order.

    Returns:
      The checkpoint that was read, or None if `steps` is empty.

    Raises:
      UserError: all of them are damaged. They are not moved in this case.
    """
    bad: dict[int, str] = {}
    for step in steps:
        values, reason = _try(storage.path(manager.directory) / str(step), abstract)
        if values:
            for damaged in bad:
                put_aside(manager, damaged)
            return Resumed(step, *values, bad)
        bad[step] = reason
    if not bad:
        return None
    reasons = '; '.join(f'step {step}: {reason}' for step, reason in bad.items())
    raise UserError(
        f'every checkpoint in {manager.directory} is damaged ({reasons}); restore a copy of one, '
        'or remove that folder to start the run from the beginning'
    )


def put_aside(manager: ocp.CheckpointManager, step: int) -> None:
    """Move a checkpoint to `RUN/damaged`, and remove it from the manager's list."""
    folder = storage.path(manager.directory) / str(step)
    if jax.process_index() == 0 and folder.exists():
        target = folder.parents[1] / DAMAGED / str(step)
        _remove(target)
        if storage.is_remote(folder):
            # Objects are moved one by one, beginning with the one that marks the checkpoint as
            # complete. What remains after a kill is removed like any unfinished checkpoint.
            storage.patiently(_move_objects)(folder, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
    _barrier(f'move damaged {step}')
    manager.reload()


def _move_objects(folder: storage.Path, target: storage.Path) -> None:
    for name in [
        checkpoint_list.COMMITTED,
        *sorted(str(p.relative_to(folder)) for p in _objects(folder)),
    ]:
        if (folder / name).exists():
            storage.write(target / name, (folder / name).read_bytes())
            (folder / name).unlink()


def _objects(folder: storage.Path) -> Iterator[storage.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _objects(path)
        else:
            yield path


def _try(folder: Path, abstract: TrainState) -> tuple[tuple[TrainState, dict] | None, str]:
    """Return ((state, host values), ''), or (None, why the checkpoint cannot be used).

    All processes agree on whether it can be used.
    """
    import orbax.checkpoint as ocp

    state, host, reason = None, {}, ''
    try:
        host = checkpoint_files.read_host(folder)
        parts = _parts(abstract)
        restore_args = ocp.checkpoint_utils.construct_restore_args(parts)
        args = ocp.args.PyTreeRestore(parts, restore_args=restore_args)
        checkpoint_files.index(folder)  # not needed to restore, but other readers need it
        # Not a checkpointer, which would wait for all processes although one of them may fail here.
        handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_at_once(parts))
        restored = handler.restore(folder / 'state', args=args)
        state = abstract.replace(**restored)
    except Exception as error:  # every reader reports a damaged file in its own way
        reason = storage.reason(error)
    if not _all(not reason) or state is None:
        return None, reason or 'another process could not read it'
    if changed := fingerprint.damaged(_parts(state), host.get('fingerprints', {})):
        return None, f'{len(changed)} arrays are not as they were saved, such as {changed[0]}'
    return (state, host), ''


def _at_once(parts: Any) -> float:
    """Return how many GB Orbax may read at the same time, which must hold the largest array.

    Without a limit, Orbax reads all arrays at once, which takes twice the memory of the state.
    """
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parts)]
    return max(1.1 * max(sizes), READ_FRACTION * sum(sizes)) / 1e9


def _all(value: bool) -> bool:
    """Whether the value is true on all processes."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _remove(folder: storage.Path) -> None:
    if folder.exists():
        folder.rmtree() if storage.is_remote(folder) else shutil.rmtree(folder)


def _parts(state: TrainState) -> dict[str, Any]:
    """Return the fields of a state that hold arrays, since Orbax does not store empty trees."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    return {name: tree for name, tree in fields.items() if jax.tree.leaves(tree)}
