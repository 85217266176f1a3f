"""The parameter table: one row per parameter, with everything that a config decides about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtrain import terminal
from jaxtrain.params.partition import Tree, flatten, nbytes

COLUMNS = ('path', 'shape', 'dtype', 'group', 'lr_mult', 'decay', 'sharding', 'bytes', 'from')


class Row(NamedTuple):
    """One parameter; the fields are in the order of COLUMNS.

    Attributes:
      path, shape, dtype: as text, such as 'head/logits/kernel', '16x10' and 'float32'.
      group: name of its group.
      lr_mult, decay: learning-rate factor and weight decay; 0 for a frozen parameter.
      sharding: how it is sharded over the devices.
      bytes: size in bytes.
      origin: origin of its value: 'init', 'load' or 'resume'.
    """

    path: str
    shape: str
    dtype: str
    group: str
    lr_mult: float
    decay: float
    sharding: str
    bytes: int
    origin: str


@dataclass(frozen=True)
class Settings:
    """What a config decides about parameters, as mappings by path.

    Attributes:
      groups, sharding, origin: as in `Row`, for every parameter.
      lr_mult, decay: as in `Row`, for the trained parameters.
    """

    groups: Mapping[str, str]
    lr_mult: Mapping[str, float]
    decay: Mapping[str, float]
    sharding: Mapping[str, str]
    origin: Mapping[str, str]


def table(params: Tree, settings: Settings) -> list[Row]:
    """The rows for nested parameters or ShapeDtypeStructs."""
    return [
        Row(
            path=path,
            shape='x'.join(map(str, leaf.shape)) or 'scalar',
            dtype=str(leaf.dtype),
            group=settings.groups[path],
            lr_mult=settings.lr_mult.get(path, 0.0),
            decay=settings.decay.get(path, 0.0),
            sharding=settings.sharding[path],
            bytes=nbytes(leaf),
            origin=settings.origin[path],
        )
        for path, leaf in flatten(params).items()
    ]


def short_text(rows: Sequence[Row]) -> str:
    """The table as aligned lines: one per parameter, or one per module if there are many."""
    columns: tuple[str, ...] = ('path', 'shape', 'group', 'lr_mult', 'decay', 'from')
    lines: list[tuple] = [(r.path, r.shape, r.group, r.lr_mult, r.decay, r.origin) for r in rows]
    if len(lines) > terminal.SHORT:
        columns = ('module', 'leaves', 'bytes', 'group', 'lr_mult', 'decay', 'from')
        modules: dict[tuple, list[int]] = {}
        for row in rows:
            module = '/'.join(row.path.split('/')[:2])
            key = (module, row.group, row.lr_mult, row.decay, row.origin)
            sums = modules.setdefault(key, [0, 0])
            sums[0] += 1
            sums[1] += row.bytes
        lines = [(m, n, size, g, lr, d, o) for (m, g, lr, d, o), (n, size) in modules.items()]
    return terminal.table(columns, lines)
