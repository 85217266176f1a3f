"""Translation of earlier configs to the current keys, so that old runs can be resumed and used.

A run's config.json stays as it was written. Its only readers, `run.read_config` and the check of a
run that resumes, use the translation by `current`. To rename a key or a value, to add a key, or to
change a default, edit keys.py, and add an entry to CHANGES as its attributes describe. Entries are
never removed, and an earlier name of a key is never used again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtrain.config.closed import flatten, tuples, unflatten
from jaxtrain.config.keys import PREPROCESSING, base


@dataclass(frozen=True)
class Changes:
    """The changes to keys and values since the first runs.

    Attributes:
      names: earlier name of a key -> current name.
      values: current name of a key -> {earlier value: current value}. Config files may still set
        the earlier values, so these must have no other meaning now.
      before: key -> the value that describes runs from before the key existed. An entry is needed
        only if that is not the default, or if the default of a key that such runs lack changes.
      fields: the same for fields of models: name of the model -> {field: value}.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


CHANGES = Changes(
    values={
        # These values left a key open before None did. image_size=() and crop=0.0 did so too, but
        # they are also valid values.
        'data.interpolation': {'': None},
        'data.scale': {0.0: None},
        'data.mean': {(): None},
        'data.std': {(): None},
        'data.channel_order': {'': None},
    },
    # Runs without these keys did what the keys' defaults were before they could be left open.
    before={f'data.{key}': value for key, value in PREPROCESSING.items()}
    | {'best_metric': 'accuracy'},
)


def current(written: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """Translates the config of an earlier run to the current keys and values.

    Args:
      written: the entry `config` of a config.json.
      changes: CHANGES.

    Returns:
      A nested dict with every key of `base()`. A model field that is not in `written` is included
      only if `changes` has it.
    """
    named = unflatten({changes.names.get(key, key): value for key, value in flatten(written)})
    flat = dict(flatten(with_current_values(named, changes)))
    flat = {**dict(flatten(base().to_dict())), **changes.before, **flat}
    fields = changes.fields.get(flat['model.name'], {})
    return unflatten({**{f'model.{name}': value for name, value in fields.items()}, **flat})


def with_current_values(
    tree: Mapping[str, Any], changes: Changes, section: str = ''
) -> dict[str, Any]:
    """Replaces earlier values in a config by current ones."""

    def value_of(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return with_current_values(value, changes, f'{section}{name}.')
        return changes.values.get(section + name, {}).get(tuples(value), value)

    return {name: value_of(name, value) for name, value in tree.items()}
