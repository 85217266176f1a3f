"""The command export: the weights of a run as safetensors, under the names of another framework."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from jaxtrain import checkpoint, run
from jaxtrain.bundle import of_run
from jaxtrain.config import nearest
from jaxtrain.errors import UserError
from jaxtrain.mesh import make_mesh, on_mesh
from jaxtrain.stored import of_checkpoint
from jaxtrain.weights.names import Row, to_theirs
from jaxtrain.weights.origins import EXPORTS


def export_weights(workdir: str, name: str, origin: str, output: str) -> str:
    """Writes a checkpoint of a run (its moving average, where it kept one) for another framework.

    Args:
      workdir: the run directory.
      name: 'best', 'last' or a step.
      origin: whose names and layout; one whose map goes both ways.
      output: the .safetensors file to write.

    Returns:
      What was written, in a line.

    Raises:
      UserError: not a run, an origin that has no such model, or parameters that it has no names
        for; nothing is written then.
    """
    target = Path(output)
    if not target.parent.is_dir():
        raise UserError(f'--output={target}: there is no folder {target.parent}; make it first')
    bundle = of_run(workdir)
    stored = of_checkpoint(checkpoint.find(workdir, name, '--checkpoint'), bundle)
    head = [path for path in stored.leaves if path.startswith('head/')]
    outputs = stored.leaves[head[-1]].shape[-1] if head else 0
    found = _rows(origin, dict(bundle.model), outputs)
    parts = {part.path for row in found for part in row.parts}
    if spare := sorted({*stored.leaves} ^ parts):
        raise UserError(
            f'{workdir}: {origin} has no place for {len(spare)} parameters of this model, first '
            f'{spare[0]}; choose another --origin'
        )
    leaves = stored.read(on_mesh(dict(stored.leaves), make_mesh()))
    values = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    arrays = {row.theirs: np.ascontiguousarray(to_theirs(row, values)) for row in found}
    run.write(target, save(arrays, metadata={'format': 'pt'}))
    return f'{len(arrays)} arrays of {bundle.model["name"]} in {target}, named as in {origin}'


def _rows(origin: str, fields: dict, outputs: int) -> tuple[Row, ...]:
    if origin not in EXPORTS:
        raise UserError(
            f'--origin={origin!r} is not known{nearest(origin, EXPORTS)}; '
            f'choose from {", ".join(EXPORTS)}'
        )
    for module in EXPORTS[origin]:
        if fields['name'] in {known['name'] for known in module.MODELS.values()}:
            return module.rows(fields, outputs)
    raise UserError(
        f'--origin={origin} has no names for model {fields["name"]!r}; choose another origin'
    )
