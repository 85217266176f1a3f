"""What config.json of transformers states for any model: sizes, activation and class names."""

from collections.abc import Mapping
from typing import Any

from jaxtrain import json_file
from jaxtrain.errors import UserError
from jaxtrain.json_file import Record

# Names of activations in config.json -> our names.
GELUS = {
    'gelu': 'erf', 'gelu_python': 'erf', 'gelu_new': 'tanh', 'gelu_fast': 'tanh',
    'gelu_pytorch_tanh': 'tanh', 'gelu_python_tanh': 'tanh', 'gelu_accurate': 'tanh',
}  # fmt: skip


def check_sizes(config: Record, sizes: Mapping[str, int], what: str) -> None:
    """Raise UserError if sizes in config.json, by its fields, differ from those of the model."""
    for name, size in sizes.items():
        if config.integer(name, size) != size:
            raise UserError(
                f'{config.at(name)}, but {what} has {size}; give weights and files of '
                'the same model, and its --model'
            )


def head_count(config: Record, names: tuple[str, ...], fields: Mapping[str, Any]) -> int:
    """Return the number of attention heads. UserError if it does not divide the width."""
    for name in names:
        heads = config.integer(name, fields['heads'])
        if heads < 1 or fields['width'] % heads:
            raise UserError(f'{config.at(name)} does not divide the width, {fields["width"]}')
        if name in config:
            return heads
    return fields['heads']


def activation(config: Record, name: str) -> dict[str, str]:
    """Return the model field `gelu` if config.json gives it. UserError for other activations."""
    if name not in config:
        return {}
    if config.text(name) not in GELUS:
        raise UserError(
            f'{config.at(name)} is not supported, only {", ".join(GELUS)}: it needs that '
            'activation in jaxtrain/models/parts/transformer.py'
        )
    return {'gelu': GELUS[config.text(name)]}


def epsilon(config: Record, name: str) -> dict[str, float]:
    """Return the model field `norm_eps` if config.json gives it."""
    if name not in config:
        return {}
    value = config.number(name)
    if value < 0:
        raise UserError(f'{config.at(name)} should be at least 0')
    return {'norm_eps': value}


def class_names(config: Record, outputs: int) -> tuple[str, ...]:
    """Return the names in `id2label`, () without any.

    Raises:
      UserError: the file has labels of a head that differs from that of the weights.
    """
    if not outputs:
        return ()
    labels = config.record('id2label', None)
    if labels is None:
        if (count := config.integer('num_labels', None)) not in (None, outputs):
            raise UserError(f'{config.at("num_labels")} ({count}), but the head has {outputs}')
        return ()
    if set(labels.values) != {str(i) for i in range(outputs)}:
        raise UserError(
            f'{config.at("id2label")} should name the outputs 0 to {outputs - 1} of the head; '
            'correct the file, or use the weights that belong to it'
        )
    numbers = {name for name, value in labels.values.items() if json_file.is_number(value)}
    return tuple(
        str(labels.values[name]) if name in numbers else labels.text(name)
        for name in map(str, range(outputs))
    )
