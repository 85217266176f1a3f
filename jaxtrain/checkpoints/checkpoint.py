"""Orbax: save while training goes on, and resume; checkpoint_files.py reads what was saved.

A checkpoint at `RUN/checkpoints/STEP` holds `state` (the arrays of a TrainState; empty parts are
left out) and `host` (JSON: what the loop carries beside it, and checksums). Orbax commits a
checkpoint by a rename, or in a bucket by a last file, so one that was cut off is never seen; it is
removed on the next start. Orbax does not notice when bits of an array change on the disk: each leaf
has a checksum of ours (fingerprint.py), which is checked whenever it is read.
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
# Bytes of an array's pieces and of a file of them. Orbax gathers a file in memory before it writes
# it: with one file for all of it, saving took 1.9 times the state in memory.
PIECE, FILE = 4 * 2**20, 16 * 2**20
# Share of the state that is on its way from the disk at a time.
READING = 0.05
# Seconds that a process waits for the others to write their parts: one of them may have failed.
TOGETHER = 600
# Attempts to save, after one has failed, and the most seconds between two.
ATTEMPTS, PAUSE = 4, 20.0


def open_manager(
    workdir: str | Path,
    keep: int,
    best: Callable[[Sequence[int]], int | None] = lambda steps: None,
) -> Manager:
    """A manager of a run's checkpoints that keeps the `keep` latest and the best one.

    Args:
      workdir: the run directory.
      keep: how many of the latest to keep, at least 1.
      best: which of some steps is the best so far, or None.
    """
    import orbax.checkpoint as ocp

    from jaxtrain.checkpoints.manager import KeepLatestAndBest, Manager

    options = ocp.CheckpointManagerOptions(
        preservation_policy=KeepLatestAndBest(keep, best),
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(timeout_secs=TOGETHER),
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
    """Starts to save; returns once the arrays are copied. The state may then be donated.

    Where the save before this one has failed, this one is waited for and tried again.

    Args:
      manager: as `open_manager` returns it.
      step: of the state; one that is saved already is left as it is.
      state: what to save.
      host: JSON values to keep beside it.
      report: told why a save failed.
      wait: until it is on disk.

    Raises:
      UserError: it cannot be written, with the checkpoints before it untouched.
    """
    trouble = _settle(manager)
    if trouble:
        report(f'a checkpoint could not be written ({storage.reason(trouble)})')
    if step in manager.all_steps():
        return

    def again(attempts: tenacity.RetryCallState) -> None:
        _recover(manager)
        report(f'step {step} could not be saved ({storage.reason(storage.failure(attempts))})')

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(max=PAUSE),
        before_sleep=again,
        reraise=True,
    )
    try:
        retrying(write, manager, step, state, host, wait or bool(trouble))
    except Exception as error:
        _recover(manager)
        last = max(manager.all_steps(), default=None)
        kept = f'the last one is of step {last}' if last is not None else 'there is none yet'
        raise UserError(
            f'the checkpoint of step {step} cannot be written to {manager.directory} '
            f'({storage.reason(error)}); {kept}. Make room or mend the disk, and start the same '
            'command again to go on'
        ) from error


def write(
    manager: ocp.CheckpointManager, step: int, state: TrainState, host: dict[str, Any], wait: bool
) -> None:
    """As `save`, with one attempt and whatever error there is."""
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
    if wait:
        manager.wait_until_finished()


def _settle(manager: ocp.CheckpointManager) -> Exception | None:
    """Waits for a save under way, and removes what is left of one that failed."""
    try:
        manager.wait_until_finished()
        manager.check_for_errors()
    except Exception as error:  # of whatever the disk, the network or Orbax says
        _recover(manager)
        return error
    return None


def _recover(manager: ocp.CheckpointManager) -> None:
    """After a save that failed, has things as they were before it."""
    with contextlib.suppress(Exception):
        manager.wait_until_finished()
    _tidy(manager)
    # Orbax has struck off already what that save would have replaced.
    manager.reload()


def _tidy(manager: ocp.CheckpointManager) -> None:
    """Removes unfinished checkpoints. In a bucket they have their final names from the start."""
    if jax.process_index():
        return
    folder = storage.path(manager.directory)
    with contextlib.suppress(Exception):  # the next start removes them as well
        for place in folder.iterdir():
            cut_off = storage.is_remote(folder) and not (place / checkpoint_list.COMMITTED).exists()
            if '.orbax-checkpoint-tmp' in place.name or cut_off:
                _remove(place)


def make_room(manager: ocp.CheckpointManager) -> None:
    """Removes what is left of a save that failed: the next one, which does so, may be far off."""
    # False once the processes have all finished, or failed.
    if not manager.is_saving_in_progress():
        _tidy(manager)


def prune(
    manager: ocp.CheckpointManager, keep: int, best: Callable[[Sequence[int]], int | None]
) -> None:
    """Removes what the run does not keep, now that the last one is evaluated as well."""
    from jaxtrain.checkpoints.manager import kept_steps

    steps = manager.all_steps()
    for step in {*steps} - kept_steps(sorted(steps), keep, best):
        manager.delete(step)


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that was read, and those that were found damaged on the way to it."""

    step: int
    state: TrainState
    host: dict[str, Any]
    damaged: Mapping[int, str]


def resume(
    manager: ocp.CheckpointManager, abstract: TrainState, steps: Sequence[int]
) -> Resumed | None:
    """Reads the first sound checkpoint of some; nothing is initialised first.

    Damaged ones before it are put aside, in `RUN/damaged`: the run saves that step again.

    Args:
      manager: as `open_manager` returns it.
      abstract: the state's shapes, dtypes and shardings.
      steps: which to try, in order.

    Returns:
      What was read; None if `steps` is empty.

    Raises:
      UserError: all are damaged; then they are left where they are.
    """
    bad: dict[int, str] = {}
    for step in steps:
        found, why = _try(storage.path(manager.directory) / str(step), abstract)
        if found:
            for damaged in bad:
                put_aside(manager, damaged)
            return Resumed(step, *found, bad)
        bad[step] = why
    if not bad:
        return None
    said = '; '.join(f'step {step}: {why}' for step, why in bad.items())
    raise UserError(
        f'no checkpoint in {manager.directory} is sound ({said}); put back a copy of one, or '
        'remove that folder to begin anew'
    )


def put_aside(manager: ocp.CheckpointManager, step: int) -> None:
    """Moves a checkpoint out of the way, and has the manager forget it."""
    place = storage.path(manager.directory) / str(step)
    if jax.process_index() == 0 and place.exists():
        aside = place.parents[1] / DAMAGED / str(step)
        _remove(aside)
        if storage.is_remote(place):
            # Object by object, and first that by which it counts as whole. What a kill leaves is
            # removed as any unfinished checkpoint.
            storage.patiently(_move_objects)(place, aside)
        else:
            aside.parent.mkdir(parents=True, exist_ok=True)
            place.rename(aside)
    _meet(f'put aside {step}')
    manager.reload()


def _move_objects(place: storage.Path, aside: storage.Path) -> None:
    for name in [
        checkpoint_list.COMMITTED,
        *sorted(str(p.relative_to(place)) for p in _objects(place)),
    ]:
        if (place / name).exists():
            storage.write(aside / name, (place / name).read_bytes())
            (place / name).unlink()


def _objects(place: storage.Path) -> Iterator[storage.Path]:
    for inner in place.iterdir():
        if inner.is_dir():
            yield from _objects(inner)
        else:
            yield inner


def _try(place: Path, abstract: TrainState) -> tuple[tuple[TrainState, dict] | None, str]:
    """(what a checkpoint holds, '') or (None, why it cannot be used), the same on all processes."""
    import orbax.checkpoint as ocp

    state, host, why = None, {}, ''
    try:
        host = checkpoint_files.read_host(place)
        parts = _parts(abstract)
        restore_args = ocp.checkpoint_utils.construct_restore_args(parts)
        args = ocp.args.PyTreeRestore(parts, restore_args=restore_args)
        # The handler, since a checkpointer waits for all processes, and one of them may fail here.
        checkpoint_files.index(place)  # which restoring does without, and other readers do not
        handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_at_once(parts))
        restored = handler.restore(place / 'state', args=args)
        state = abstract.replace(**restored)
    except Exception as error:  # a damaged file shows in as many ways as there are readers
        why = storage.reason(error)
    if not _all(not why) or state is None:
        return None, why or 'another process could not read it'
    if changed := fingerprint.damaged(_parts(state), host.get('fingerprints', {})):
        return None, f'{len(changed)} arrays are not as they were saved, such as {changed[0]}'
    return (state, host), ''


def _at_once(parts: Any) -> float:
    """How many GB Orbax may have on their way from the disk at a time; it needs the largest array.

    Without a bound it is all of them: twice the state in memory.
    """
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parts)]
    return max(1.1 * max(sizes), READING * sum(sizes)) / 1e9


def _all(fine: bool) -> bool:
    if jax.process_count() == 1:
        return fine
    return bool(np.all(multihost_utils.process_allgather(np.array(fine))))


def _meet(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _remove(place: storage.Path) -> None:
    if place.exists():
        place.rmtree() if storage.is_remote(place) else shutil.rmtree(place)


def _parts(state: TrainState) -> dict[str, Any]:
    """The fields of a state that hold arrays: Orbax does not store empty trees."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    return {name: tree for name, tree in fields.items() if jax.tree.leaves(tree)}
