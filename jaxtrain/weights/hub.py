"""The JSON files beside weights from the Hugging Face Hub: config.json and others."""

from collections.abc import Mapping
from typing import Any

from jaxtrain import json_file
from jaxtrain.errors import UserError
from jaxtrain.weights.formats.archive import Archive

# Names of activations in config.json -> our names.
GELUS = {'gelu': 'erf', 'gelu_new': 'tanh', 'gelu_fast': 'tanh', 'gelu_pytorch_tanh': 'tanh'}


def read_json(archive: Archive, name: str = 'config.json') -> dict[str, Any]:
    """Read a JSON file beside the weights; {} if it does not exist. UserError if it is damaged."""
    record = json_file.read(archive.folder / name)
    return dict(record.values) if record else {}


def check_sizes(
    archive: Archive, described: Mapping[str, Any], sizes: Mapping[str, Any], model: str
) -> None:
    """Raise UserError if the sizes in config.json, by its keys, differ from those of a model."""
    for key, value in sizes.items():
        if described.get(key, value) != value:
            raise UserError(
                f'{archive.folder / "config.json"} has {key}={described[key]!r}, but {model} has '
                f'{value}; give the --model of that size'
            )


def activation(archive: Archive, described: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return the model field `gelu` if config.json gives it. UserError for other activations."""
    if key not in described:
        return {}
    if described[key] not in GELUS:
        raise UserError(
            f'{archive.folder / "config.json"} has {key}={described[key]!r}, which the model does '
            f'not support; it supports {", ".join(GELUS)}'
        )
    return {'gelu': GELUS[described[key]]}


def class_names(described: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    """Return the names in `id2label`, () if their number differs from `outputs`."""
    labels = described.get('id2label', {})
    return tuple(labels[str(i)] for i in range(outputs)) if len(labels) == outputs else ()
