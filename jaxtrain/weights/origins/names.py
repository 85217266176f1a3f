"""Name maps: tables from the arrays of another framework to our parameters, with their layouts.

A row names a foreign array and the one or more parameters of ours that it holds. Each of these has
a pattern in the notation of einops, with our axes on the left and the foreign axes on the right, so
that it can be applied in both directions:

    Row('blocks.{i}.mlp.fc1.weight', (Part('backbone/block_{i}/mlp/up/kernel', 'i o -> o i'),))

is a dense layer that the other framework stores transposed. Several parts are concatenated along
an axis of the foreign array: query, key and value, or the positions of class token and patches.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from einops import rearrange

from jaxtrain.data.features import Feature

Shape = tuple[int, ...]

# Patterns that most frameworks share.
SAME1, SAME2 = 'a -> a', 'a b -> a b'
DENSE = 'i o -> o i'
CONV = 'h w i o -> o i h w'
# Attention in PyTorch: heads are concatenated along the rows of a matrix.
HEADS_IN, HEADS_BIAS, HEADS_OUT = 'i h d -> (h d) i', 'h d -> (h d)', 'h d o -> o (h d)'


@dataclass(frozen=True)
class Part:
    """One of our arrays within a foreign array.

    Attributes:
      path: our parameter path; for a BatchNorm statistic, without its collection.
      pattern: 'OURS -> THEIRS', with axes named as in einops.
      sizes: lengths of the axes in parentheses on our side.
    """

    path: str
    pattern: str
    sizes: tuple[tuple[str, int], ...] = ()

    def lengths(self, shape: Shape) -> dict[str, int]:
        """Return the length of every axis, given the shape of our array."""
        plain = zip(_axes(self.pattern.split('->')[0]), shape, strict=True)
        return {**{name: size for name, size in plain if name[0] != '('}, **dict(self.sizes)}


@dataclass(frozen=True)
class Row:
    """One foreign array.

    Attributes:
      theirs: its key.
      parts: our arrays in it, in order.
      axis: the axis of the foreign array along which several parts are concatenated.
    """

    theirs: str
    parts: tuple[Part, ...]
    axis: int = 0


@dataclass(frozen=True)
class Match:
    """A file as an origin interprets it: the model and its map, before any array is checked.

    Attributes:
      fields: fields of `config.model`, including the name.
      outputs: width of the head, 0 without a head.
      inputs: the feature that the model takes.
      rows: the map.
      ignored: (regular expression, reason) of keys that are not weights of the model.
      preprocessing: keys of `config.data` with their values.
      classes: class names by label, () if unknown.
      assumed: sentences about what the file leaves open.
      task: value of `config.task.name`.
      imagenet: whether a head of 1000 outputs without class names is ImageNet's.
    """

    fields: dict[str, Any]
    outputs: int
    inputs: Feature
    rows: tuple[Row, ...]
    ignored: tuple[tuple[str, str], ...] = ()
    preprocessing: Mapping[str, Any] | None = None
    classes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    task: str = 'classify'
    imagenet: bool = True


def row(theirs: str, path: str, pattern: str, **sizes: int) -> Row:
    """Return a row with a single part."""
    return Row(theirs, (Part(path, pattern, tuple(sizes.items())),))


def expand(table: Iterable[Row], **values: Any) -> list[Row]:
    """Return the rows with each `{name}` in keys and paths replaced by its value."""
    return [
        replace(
            r,
            theirs=r.theirs.format(**values),
            parts=tuple(replace(part, path=part.path.format(**values)) for part in r.parts),
        )
        for r in table
    ]


def their_shape(entry: Row, shapes: Mapping[str, Shape]) -> Shape:
    """Return the shape of a foreign array, given the shapes of ours by path."""
    each = [_their_shape(part, shapes[part.path]) for part in entry.parts]
    if len(each) == 1:
        return each[0]
    axis = entry.axis
    return (*each[0][:axis], sum(s[axis] for s in each), *each[0][axis + 1 :])


def to_ours(entry: Row, array: np.ndarray, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Convert a foreign array of shape `their_shape` to ours by path (views where possible)."""
    if len(entry.parts) == 1:
        pieces = [array]
    else:
        widths = [_their_shape(p, shapes[p.path])[entry.axis] for p in entry.parts]
        pieces = np.split(array, np.cumsum(widths)[:-1], entry.axis)
    return {
        part.path: _backwards(part, piece, shapes[part.path])
        for part, piece in zip(entry.parts, pieces, strict=True)
    }


def to_theirs(entry: Row, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Convert our arrays by path to a foreign array."""
    pieces = [
        rearrange(arrays[part.path], part.pattern, **dict(part.sizes)) for part in entry.parts
    ]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, entry.axis)


def _backwards(part: Part, array: np.ndarray, shape: Shape) -> np.ndarray:
    ours, theirs = part.pattern.split('->')
    return rearrange(array, f'{theirs} -> {ours}', **part.lengths(shape))


def _their_shape(part: Part, shape: Shape) -> Shape:
    lengths = {**part.lengths(shape), '1': 1}
    axes = _axes(part.pattern.split('->')[1])
    return tuple(math.prod(lengths[name] for name in axis.strip('()').split()) for axis in axes)


def _axes(side: str) -> list[str]:
    """Split a side of a pattern into axes: '(h d) i' -> ['(h d)', 'i']."""
    return re.findall(r'\([^)]*\)|\S+', side)
