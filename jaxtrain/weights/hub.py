"""The JSON files that the Hugging Face Hub keeps beside weights: config.json and others."""

import json
from collections.abc import Mapping
from typing import Any

from jaxtrain.errors import UserError
from jaxtrain.weights.formats.archive import Archive

# Our names of what config.json says of the activation.
GELUS = {'gelu': 'erf', 'gelu_new': 'tanh', 'gelu_fast': 'tanh', 'gelu_pytorch_tanh': 'tanh'}


def read_json(archive: Archive, name: str = 'config.json') -> dict[str, Any]:
    """A JSON file beside the weights, {} where there is none. UserError if it is damaged."""
    path = archive.folder / name
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise UserError(f'{path} is no JSON ({error}); download it again') from error
    return found if isinstance(found, dict) else {}


def check_sizes(
    archive: Archive, described: Mapping[str, Any], sizes: Mapping[str, Any], model: str
) -> None:
    """UserError if config.json tells other sizes, by its own keys, than those of a model."""
    for key, value in sizes.items():
        if described.get(key, value) != value:
            raise UserError(
                f'{archive.folder / "config.json"} says {key}={described[key]!r}, but {model} has '
                f'{value}; give the --model of that size'
            )


def activation(archive: Archive, described: Mapping[str, Any], key: str) -> dict[str, str]:
    """The field `gelu` of a model if config.json tells it. UserError for another activation."""
    if key not in described:
        return {}
    if described[key] not in GELUS:
        raise UserError(
            f'{archive.folder / "config.json"} says {key}={described[key]!r}, which the model has '
            f'not; it has {", ".join(GELUS)}'
        )
    return {'gelu': GELUS[described[key]]}


def class_names(described: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    """The names in `id2label`, () where it is not of so many outputs."""
    labels = described.get('id2label', {})
    return tuple(labels[str(i)] for i in range(outputs)) if len(labels) == outputs else ()
