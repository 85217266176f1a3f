"""Export: writes the weights of a run as safetensors, under the names of another framework.

Weights under the names of AugReg can also be written as npz, which timm and big_vision read.
"""

import dataclasses
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import save

from jaxtrain import json_file, storage
from jaxtrain.checkpoints import checkpoint_list
from jaxtrain.errors import UserError, nearest
from jaxtrain.models import MODELS, fixed_fields
from jaxtrain.parallel.mesh import make_mesh, on_mesh
from jaxtrain.weights.bundle import of_run
from jaxtrain.weights.origins import configs
from jaxtrain.weights.origins.names import Row, to_theirs
from jaxtrain.weights.origins.origins import EXPORTS
from jaxtrain.weights.stored import Stored, of_checkpoint

CONFIG = 'config.json'
# Fields of `config.model` that this file states for an origin.
STATED = {
    'timm': ('gelu', 'pool', 'norm_after_pool'),
    'huggingface': ('gelu', 'norm_eps', 'scale_attention', 'pad'),
}


def export_weights(workdir: str, name: str, origin: str, output: str) -> str:
    """Writes a checkpoint of a run (its moving average, if it has one) for another framework.

    Args:
      workdir: the run directory.
      name: 'best', 'last' or a step.
      origin: the framework whose names and layout are used; its name map must be invertible.
      output: the .safetensors file to write, or .npz for AugReg. For timm and transformers,
        config.json is written beside it.

    Returns:
      A line that reports what was written, and the fields that differ from that framework's models.

    Raises:
      UserError: not a run, an unsupported file type, an origin without such a model, or parameters
        for which it has no names. Nothing is written then.
    """
    target = Path(output)
    if not target.parent.is_dir():
        raise UserError(f'--output={target}: there is no folder {target.parent}; make it first')
    bundle = of_run(workdir)
    module = _module(origin, bundle.model['name'])
    allowed = ('.safetensors', '.npz') if origin == 'augreg' else ('.safetensors',)
    if target.suffix not in allowed:
        raise UserError(
            f'--output={target}: weights named as in {origin} are written as '
            f'{" or ".join(allowed)}; give a file with that suffix'
        )
    stored = of_checkpoint(checkpoint_list.find(workdir, name, '--checkpoint'), bundle)
    head = stored.leaves.get('head/logits/kernel')
    rows = module.rows(dict(bundle.model), head.shape[-1] if head is not None else 0)
    parts = {part.path for row in rows for part in row.parts}
    if spare := sorted({*stored.leaves} ^ parts):
        raise UserError(
            f'{workdir}: {origin} has no names for {len(spare)} parameters of this model, first '
            f'{spare[0]}; choose another --origin'
        )
    content = _config(origin, stored, target)
    leaves = stored.read(on_mesh(dict(stored.leaves), make_mesh()))
    storage.write(
        target, encoded(rows, {k: np.asarray(v) for k, v in leaves.items()}, target.suffix)
    )
    stated: tuple[str, ...] = ()
    if content is not None:
        storage.write(target.parent / CONFIG, json.dumps(content, indent=2).encode())
        stated = STATED[origin]
    return (
        f'{len(rows)} arrays of {bundle.model["name"]} in {target}, named as in {origin}'
        f'{f", with {CONFIG}" if stated else ""}{_otherwise(module, bundle.model, stated)}'
    )


def _config(origin: str, stored: Stored, target: Path) -> dict[str, Any] | None:
    """The content of config.json for these weights, None if the origin has no such file.

    Raises:
      UserError: the folder has another file of this name.
    """
    assert stored.bundle is not None  # the weights are those of a run
    shapes = {path: leaf.shape for path, leaf in stored.leaves.items()}
    bundle = stored.bundle
    content = configs.config(
        origin,
        configs.Exported(
            bundle.model, bundle.data, shapes.get('head/logits/kernel', (0,))[-1], bundle.classes,
            shapes,
        ),
    )  # fmt: skip
    path = target.parent / CONFIG
    if content is not None and path.exists():
        written = json_file.read(path)
        if written is None or dict(written.values) != json.loads(json.dumps(content)):
            raise UserError(
                f'--output={target}: {path} exists and describes other weights; give another folder'
            )
    return content


def encoded(rows: tuple[Row, ...], values: Mapping[str, np.ndarray], suffix: str) -> bytes:
    """Encodes arrays by path as a '.safetensors' or '.npz' file with the names in `rows`."""
    arrays: dict[str, Any] = {
        row.theirs: np.ascontiguousarray(to_theirs(row, values)) for row in rows
    }
    if suffix == '.safetensors':
        return save(arrays, metadata={'format': 'pt'})
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _module(origin: str, model: str) -> ModuleType:
    """The module of an origin that has a name map for this model."""
    if origin not in EXPORTS:
        raise UserError(
            f'--origin={origin!r} is not known{nearest(origin, EXPORTS)}; '
            f'choose from {", ".join(EXPORTS)}'
        )
    for module in EXPORTS[origin]:
        if model in {known['name'] for known in module.MODELS.values()}:
            return module
    raise UserError(f'--origin={origin} has no names for model {model!r}; choose another origin')


def _names(module: ModuleType, fields: Mapping[str, Any]) -> set[str]:
    return {re.sub(r'\d+', '#', row.theirs) for row in module.rows(dict(fields), 1)}


def _otherwise(module: ModuleType, fields: Mapping[str, Any], stated: tuple[str, ...]) -> str:
    """Reports fields that no file shows and that differ from the origin's models of this family.

    The models of a family have the same names of arrays: transformers' ViT and DINOv2 differ.
    """
    kind, names = fields['name'], _names(module, fields)
    alike = [each for each in module.MODELS.values() if each['name'] == kind]
    known = [each for each in alike if _names(module, each) == names] or alike
    defaults = {f.name: f.default for f in dataclasses.fields(MODELS[kind])}
    differing = [
        f'{name}={fields[name]!r}'
        for name in dict.fromkeys((*fixed_fields(kind), 'pool'))
        if (name not in stated or fields[name] == 'both')
        and name in fields
        and fields[name] not in [m.get(name, defaults[name]) for m in known]
    ]
    if not differing:
        return ''
    return f'; it computes with {", ".join(differing)}, which must be set there too'
