"""Orbax: save while training goes on, resume, and name checkpoints: best, last or a step.

A checkpoint at `RUN/checkpoints/STEP` holds `state` (the arrays of a TrainState; empty parts are
left out) and `host` (JSON: what the loop carries beside it). Orbax commits a checkpoint by a
rename, so one that was cut off is never seen; it is removed on the next start.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxtrain.errors import UserError
from jaxtrain.state import TrainState

FOLDER = 'checkpoints'
# Bytes of an array's pieces and of a file of them. Orbax gathers a file in memory before it writes
# it: with one file for all of it, saving took 1.9 times the state in memory.
PIECE, FILE = 4 * 2**20, 16 * 2**20


def open_manager(
    workdir: str | Path, keep: int, best_metric: str, read_only: bool = False
) -> ocp.CheckpointManager:
    """A manager of a run's checkpoints that keeps the `keep` latest and the best one.

    Args:
      workdir: the run directory.
      keep: how many of the latest to keep, at least 1.
      best_metric: val metric; 'loss' is minimised, any other maximised.
      read_only: leave the folder alone: another process may be writing to it.
    """
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(max(keep, 1)),
            checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics[best_metric],
                reverse=best_metric == 'loss',
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=lambda metrics: metrics[best_metric],
        best_mode='min' if best_metric == 'loss' else 'max',
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        enable_async_checkpointing=True,
    )
    return ocp.CheckpointManager((Path(workdir) / FOLDER).absolute(), options=options)


def save(
    manager: ocp.CheckpointManager, step: int, state: TrainState, host: dict, metrics: dict | None
) -> None:
    """Starts to save; returns once the arrays are copied. The state may then be donated."""
    parts = _parts(state)
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE), parts)
    args = ocp.args.Composite(
        state=ocp.args.PyTreeSave(parts, save_args=pieces, ocdbt_target_data_file_size=FILE),
        host=ocp.args.JsonSave(host),
    )
    manager.save(step, args=args, metrics=metrics, force=True)


def resume(
    manager: ocp.CheckpointManager, step: int, abstract: TrainState
) -> tuple[TrainState, dict]:
    """The state and the host's values saved at a step; nothing is initialised first.

    Args:
      manager: as `open_manager` returns it.
      step: a saved step.
      abstract: the state's shapes, dtypes and shardings.
    """
    parts = _parts(abstract)
    restore_args = ocp.checkpoint_utils.construct_restore_args(parts)
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.PyTreeRestore(parts, restore_args=restore_args),
            host=ocp.args.JsonRestore(),
        ),
    )
    return abstract.replace(**restored['state']), restored['host']


def find(run: str | Path, name: str, where: str) -> Path:
    """The folder of a checkpoint of a finished or unfinished run.

    Args:
      run: the run directory.
      name: 'best' (by the run's val metric, else the last), 'last' or a step number.
      where: the flag or config key, for messages.

    Raises:
      UserError: no run, no checkpoint, or not that one.
    """
    folder = Path(run).absolute() / FOLDER  # Orbax takes no relative path
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
    return sorted(int(p.name) for p in (Path(run) / FOLDER).glob('*') if p.name.isdecimal())


def best_step(run: str | Path) -> int | None:
    """The step with the best val metric, by the run's own config; None without metrics."""
    from jaxtrain.run import read_config

    config = read_config(run)['config']
    manager = open_manager(run, config['keep'], config['best_metric'], read_only=True)
    try:
        return manager.best_step()
    finally:
        manager.close()


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """Nested abstract arrays of a checkpoint's state, with nothing read but its index."""
    with ocp.PyTreeCheckpointer() as reader:
        metadata = reader.metadata(checkpoint / 'state').item_metadata.tree
    return jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(tuple(m.shape), m.dtype),
        metadata,
        is_leaf=lambda m: hasattr(m, 'shape'),
    )


def read(checkpoint: Path, wanted: Any) -> Any:
    """Reads just the leaves that `wanted` names, onto its shardings.

    Args:
      checkpoint: as `find` returns it.
      wanted: nested dict of ShapeDtypeStructs with shardings, a part of the saved state.
    """
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    with ocp.PyTreeCheckpointer() as reader:
        values = reader.restore(
            checkpoint / 'state',
            args=ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True),
        )
    # Orbax hands back a placeholder for a key that the checkpoint lacks: never let one through.
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        if not isinstance(leaf, jax.Array):
            raise UserError(f'{checkpoint} has no value for {jax.tree_util.keystr(path)}')
    return values


def _parts(state: TrainState) -> dict[str, Any]:
    """The fields of a state that hold arrays: Orbax does not store empty trees."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    return {name: tree for name, tree in fields.items() if jax.tree.leaves(tree)}
