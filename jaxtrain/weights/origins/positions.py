"""The grid of position embeddings, whose rows and columns their number does not show."""

import math
from dataclasses import dataclass

from jaxtrain.errors import UserError
from jaxtrain.json_file import Record
from jaxtrain.weights.formats.archive import Archive

Size = tuple[int, int]


@dataclass(frozen=True)
class Positions:
    """Position embeddings in a file, and what is stated of them.

    Attributes:
      key: their key; they are [1, positions, width].
      patch: height and width of a patch.
      front: how many positions of other tokens may come before those of the patches, the usual
        number first.
      sizes: (height and width of images, whether the positions must fit), the first stated best.
      flag: the name of the field that states another size, for messages.
    """

    key: str
    patch: Size
    front: tuple[int, ...] = (1,)
    sizes: tuple[tuple[Size, bool], ...] = ()
    flag: str = 'image_size'


@dataclass(frozen=True)
class Grid:
    """What the positions are for.

    Attributes:
      size: height and width of the images.
      front: how many positions come before those of the patches.
      assumed: a sentence, if nothing states the grid.
    """

    size: Size
    front: int
    assumed: tuple[str, ...] = ()


def find(archive: Archive, positions: Positions) -> Grid:
    """Return the grid that is stated; if none fits, the square, which is reported.

    Raises:
      UserError: a size that must fit does not, or no square fits.
    """
    leaf, patch = archive.arrays.get(positions.key), positions.patch
    if leaf is None or len(leaf.shape) != 3:
        return Grid((224 // patch[0] * patch[0], 224 // patch[1] * patch[1]), positions.front[0])
    count = leaf.shape[1]
    for size, strict in positions.sizes:
        rows, columns = (side // step for side, step in zip(size, patch, strict=True))
        whole = (rows * patch[0], columns * patch[1]) == size
        for front in positions.front:
            if whole and rows * columns + front == count and rows:
                return Grid(size, front)
        if strict:
            raise UserError(
                f'{archive.path}: images of {size[0]}x{size[1]} have {rows}x{columns} patches'
                f'{"" if whole else " and a rest"}, but {positions.key} has '
                f'{count - positions.front[0]} patch positions; correct the size'
            )
    for front in positions.front:
        side = math.isqrt(max(count - front, 0))
        if side and side * side == count - front:
            height, width = side * patch[0], side * patch[1]
            words = (
                f'{positions.flag}=[{height},{width}], with positions in a square '
                f'(--field={positions.flag}=[HEIGHT,WIDTH] states another grid)'
            )
            return Grid((height, width), front, (words,))
    raise UserError(
        f'{archive.path}: {positions.key} has {count - positions.front[0]} patch positions, which '
        f'do not form a square; state the size of the images, as in '
        f'--field={positions.flag}=[128,32]'
    )


def sizes_of(record: Record, name: str, strict: bool) -> tuple[tuple[Size, bool], ...]:
    """Return the size in a field, () if it is missing; UserError for another form."""
    value = record.values.get(name)
    if value is None:
        return ()
    sides = [value, value] if isinstance(value, int) else value
    pair = isinstance(sides, list) and len(sides) == 2
    if pair and all(type(side) is int and side > 0 for side in sides):
        return (((sides[0], sides[1]), strict),)
    raise UserError(f'{record.at(name)} should be a size, or [height, width]')
