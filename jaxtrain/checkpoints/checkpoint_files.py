"""Read and verify parts of a checkpoint on the disk; checkpoint_list.py finds checkpoints."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxtrain import storage
from jaxtrain.checkpoints import fingerprint
from jaxtrain.errors import UserError


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """Return the nested abstract arrays of a checkpoint's state. Only its index is read.

    Raises:
      UserError: the index is damaged.
    """
    with _readable(checkpoint):
        tree = index(checkpoint)
    return jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(tuple(m.shape), m.dtype),
        tree,
        is_leaf=lambda m: hasattr(m, 'shape'),
    )


def index(checkpoint: Path) -> Any:
    import orbax.checkpoint as ocp

    return ocp.PyTreeCheckpointHandler().metadata(checkpoint / 'state').tree


def read(checkpoint: Path, wanted: Any) -> Any:
    """Read only the leaves that `wanted` names, onto its shardings.

    Args:
      checkpoint: as `checkpoint_list.find` returns it.
      wanted: nested dict of ShapeDtypeStructs with shardings, a subset of the saved state.

    Raises:
      UserError: a leaf is missing or damaged.
    """
    import orbax.checkpoint as ocp

    with _readable(checkpoint):
        checks = read_host(checkpoint).get('fingerprints', {})
        restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
        with ocp.PyTreeCheckpointer() as reader:
            values = reader.restore(checkpoint / 'state', args=args)
    # Orbax returns a placeholder for a key that the checkpoint lacks.
    for path, leaf in jax.tree_util.tree_leaves_with_path(values):
        if not isinstance(leaf, jax.Array):
            raise UserError(f'{checkpoint} has no value for {jax.tree_util.keystr(path)}')
    if changed := fingerprint.damaged(values, checks):
        raise UserError(f'{checkpoint} is damaged: {changed[0]} is not as it was saved; {_ADVICE}')
    return values


@contextlib.contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # every reader reports a damaged file in its own way
        raise UserError(
            f'{checkpoint} cannot be read ({storage.reason(error)}); {_ADVICE}'
        ) from error


_ADVICE = 'choose another checkpoint, or restore a copy of this one'


def read_host(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's host values. ValueError if they are not as they were saved."""
    file = checkpoint / 'host' / 'metadata'
    content = storage.read(file)
    if content is None:
        raise FileNotFoundError(f'it has no {file.relative_to(checkpoint)}')
    host = json.loads(content)
    if 'crc' in host and host.pop('crc') != crc(host):
        raise ValueError('its host values are not as they were saved')
    return host


def crc(host: Mapping[str, Any]) -> int:
    return fingerprint.of_text(json.dumps(host, sort_keys=True))
