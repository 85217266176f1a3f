"""What an earlier config means with the keys of today, so that old runs go on and can be used.

A run's config.json stays as it was written. `run.read_config` and the check of a run that resumes
see it as `current` translates it, and nothing else reads it. To rename a key or a value, to add a
key, or to change a default, edit keys.py, and add to CHANGES what the entry's attribute asks for.
No entry is ever removed, and no earlier name of a key is used again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtrain.config.closed import flatten, tuples, unflatten
from jaxtrain.config.keys import base


@dataclass(frozen=True)
class Changes:
    """What has changed since the first runs.

    Attributes:
      names: earlier name of a key -> name today.
      values: key by its name today -> {earlier value: value today}. Config files may still set the
        earlier values, too, so they must have no other meaning today.
      before: key -> what runs did before it existed. Needed only where that is not its default;
        needed as well when the default of a key that runs lack changes.
      fields: the same for fields of models: model's name -> {field: value}.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


CHANGES = Changes(
    values={
        # These left a key open before None did. image_size=() and crop=0.0 did as well, but are
        # values that can be meant.
        'data.interpolation': {'': None},
        'data.scale': {0.0: None},
        'data.mean': {(): None},
        'data.std': {(): None},
        'data.channel_order': {'': None},
    },
)


def current(written: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The config of an earlier run, as it would be written today.

    Args:
      written: the entry `config` of a config.json.
      changes: CHANGES.

    Returns:
      A nested dict with every key of `base()`; a field of the model that the run did not have is
      there only if `changes` has it.
    """
    named = unflatten({changes.names.get(key, key): value for key, value in flatten(written)})
    flat = dict(flatten(with_current_values(named, changes)))
    flat = {**dict(flatten(base().to_dict())), **changes.before, **flat}
    fields = changes.fields.get(flat['model.name'], {})
    return unflatten({**{f'model.{name}': value for name, value in fields.items()}, **flat})


def with_current_values(
    tree: Mapping[str, Any], changes: Changes, section: str = ''
) -> dict[str, Any]:
    """A config with the earlier values of its keys replaced by those of today."""

    def value_of(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return with_current_values(value, changes, f'{section}{name}.')
        return changes.values.get(section + name, {}).get(tuples(value), value)

    return {name: value_of(name, value) for name, value in tree.items()}
