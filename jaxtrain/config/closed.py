"""The closed config that the program reads.

A config file starts from `base()`, which defines every key and its default (keys.py), and changes
some of them:

    from jaxtrain.config import base

    def get_config(variant='scratch'):
        c = base()
        c.data.name = 'digits'
        ...
        return c

Nothing is ignored silently. Setting a key that does not exist is an error, which suggests the
nearest key; a value of another type is an error; and a key that was changed but that the run never
reads is an error before the first step (`Config.require_read`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxtrain.config.keys import OPEN_SECTIONS, base
from jaxtrain.errors import UserError, nearest


def known_variant(variant: str, variants: tuple[str, ...]) -> None:
    """Raises a UserError that suggests the nearest variant, unless a config file has this one."""
    if variant not in variants:
        raise UserError(
            f'--config: there is no variant {variant!r}{nearest(variant, variants)}; '
            f'choose from {", ".join(variants)}'
        )


class Config:
    """A read-only config that remembers which keys were read.

    Sections and keys are attributes. There is no `get` with a default, because `base()` is the only
    place for defaults.

    Args:
      tree: the keys and values, nested.
      given: the keys that the command line set.
    """

    def __init__(
        self,
        tree: Mapping[str, Any],
        given: frozenset[str] = frozenset(),
        _path: str = '',
        _read: set[str] | None = None,
    ):
        self._tree, self._given, self._path = tree, given, _path
        self._read = set() if _read is None else _read

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_') or name not in self._tree:
            raise AttributeError(f'config.{self._path}{name}')
        value, path = self._tree[name], self._path + name
        if isinstance(value, Mapping):
            return Config(value, self._given, path + '.', self._read)
        self._read.add(path)
        return value

    def items(self) -> Iterator[tuple[str, Any]]:
        """Iterates over the keys and values of an open section."""
        return ((name, getattr(self, name)) for name in self._tree)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> 'Config':
        """Makes a config from the result of `run.read_config`, with tuples for JSON's lists."""
        return cls(tuples(tree))

    def to_dict(self) -> dict[str, Any]:
        return _deep(self._tree)

    def replace(self, **changes: Any) -> 'Config':
        """Returns a copy of which nothing is read yet; `__` is a dot: `replace(data__limit=5)`."""
        flat = dict(flatten(self._tree))
        for name, value in changes.items():
            key = name.replace('__', '.')
            if key not in flat:
                raise KeyError(key)
            flat[key] = value
        return Config(unflatten(flat), self._given)

    def updated(self, **changes: Any) -> 'Config':
        """Returns a copy with other values, which shares the record of keys that were read.

        A section is updated by a mapping of its keys: `updated(data={'limit': 5}, seed=3)`.
        """
        tree = {
            name: {**self._tree[name], **value} if isinstance(value, Mapping) else value
            for name, value in changes.items()
        }
        return Config({**self._tree, **tree}, self._given, self._path, self._read)

    def choose(self, name: str, allowed) -> Any:
        """Returns the value of a key that must be one of `allowed`.

        Raises:
          UserError: any other value; the message suggests the nearest one.
        """
        value = getattr(self, name)
        if value not in allowed:
            raise UserError(
                f'config.{self._path}{name}={value!r} is not known{nearest(value, allowed)}; '
                f'choose from {", ".join(sorted(map(str, allowed)))}'
            )
        return value

    def unread(self) -> list[str]:
        """The keys of closed sections that were not read."""
        paths = (path for path, _ in flatten(self._tree))
        return [path for path in paths if path not in self._read and not is_open(path)]

    def require_read(self, but: tuple[str, ...] = ()) -> None:
        """Raises a UserError if a key was changed from its default but never read.

        Args:
          but: prefixes of keys that need not be read.
        """
        for path, value in self.spare(but).items():
            raise UserError(
                f'config.{path}={value!r} was set, but nothing in this run reads it; '
                'remove it, or set the key that puts it to use'
            )

    def spare(self, but: tuple[str, ...] = ()) -> dict[str, Any]:
        """The changed keys that were never read, without those that begin with one of `but`."""
        changed = self.changed().items()
        return {k: v for k, v in changed if k not in self._read and not k.startswith(but)}

    def changed(self) -> dict[str, Any]:
        """The keys whose values differ from their defaults, and these values."""
        defaults = dict(flatten(base().to_dict()))
        return {
            path: value
            for path, value in flatten(self._tree)
            if path not in defaults or defaults[path] != value
        }

    @property
    def given(self) -> frozenset[str]:
        """The keys that the command line set."""
        return self._given


def flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """`{'a': {'b': 1}}` -> `('a.b', 1)`. An empty section has no items."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f'{prefix}{name}.')
        else:
            yield prefix + name, value


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `flatten`; open sections without keys become empty dicts."""
    tree: dict[str, Any] = {}
    for section in OPEN_SECTIONS:
        _descend(tree, section.split('.'))
    for path, value in flat.items():
        *parents, name = path.split('.')
        _descend(tree, parents)[name] = value
    return tree


def is_open(path: str) -> bool:
    """Whether a key is in an open section, whose keys are checked where they are used."""
    return path.rsplit('.', 1)[0] in OPEN_SECTIONS


def tuples(value: Any) -> Any:
    """Replaces the lists in a value by tuples, which JSON does not have."""
    if isinstance(value, Mapping):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def _descend(tree: dict, names: list[str]) -> dict:
    for name in names:
        tree = tree.setdefault(name, {})
    return tree


def _deep(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _deep(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
