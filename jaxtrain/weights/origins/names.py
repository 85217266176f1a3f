"""Name maps: tables that say which array of another framework holds which of ours, and how it lies.

A row names an array there, and the one or more of ours that it holds. Each of ours has a pattern in
the notation of einops, ours on the left and theirs on the right, so that it can be read both ways:

    Row('blocks.{i}.mlp.fc1.weight', Part('backbone/block_{i}/mlp/up/kernel', 'i o -> o i'))

is a dense layer that is stored transposed there. Several parts lie one after the other on an axis
of theirs: query, key and value, or the class token's position and those of the patches.
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
# Attention of PyTorch: heads lie one after the other in the rows of a matrix.
HEADS_IN, HEADS_BIAS, HEADS_OUT = 'i h d -> (h d) i', 'h d -> (h d)', 'h d o -> o (h d)'


@dataclass(frozen=True)
class Part:
    """One of our arrays in one of theirs.

    Attributes:
      path: our parameter path; a BatchNorm statistic's is without its collection.
      pattern: 'OURS -> THEIRS', axes named as in einops.
      sizes: lengths of axes that stand in brackets on our side.
    """

    path: str
    pattern: str
    sizes: tuple[tuple[str, int], ...] = ()

    def lengths(self, shape: Shape) -> dict[str, int]:
        """The length of every axis, from the shape of our array."""
        plain = zip(_axes(self.pattern.split('->')[0]), shape, strict=True)
        return {**{name: size for name, size in plain if name[0] != '('}, **dict(self.sizes)}


@dataclass(frozen=True)
class Row:
    """One array of theirs.

    Attributes:
      theirs: its key.
      parts: what it holds, in order.
      axis: the axis of theirs along which several parts lie.
    """

    theirs: str
    parts: tuple[Part, ...]
    axis: int = 0


@dataclass(frozen=True)
class Match:
    """What a file is for our model, as an origin's map reads it; nothing is checked yet.

    Attributes:
      fields: of `config.model`, the name included.
      outputs: width of the head, 0 without one.
      inputs: what the model is given of an example.
      rows: the map.
      ignored: regular expressions of keys that are no weights of the model, each with the reason.
      preprocessing: keys of `config.data` with their values.
      classes: class names by label, () where they are not known.
      assumed: what the file does not say, in words.
      task: of `config.task.name`.
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


def row(theirs: str, path: str, pattern: str, **sizes: int) -> Row:
    """A row of one part."""
    return Row(theirs, (Part(path, pattern, tuple(sizes.items())),))


def expand(table: Iterable[Row], **values: Any) -> list[Row]:
    """The rows with `{name}` replaced in their keys and paths."""
    return [
        replace(
            r,
            theirs=r.theirs.format(**values),
            parts=tuple(replace(part, path=part.path.format(**values)) for part in r.parts),
        )
        for r in table
    ]


def their_shape(found: Row, shapes: Mapping[str, Shape]) -> Shape:
    """The shape that an array of theirs has, given those of ours by path."""
    each = [_their_shape(part, shapes[part.path]) for part in found.parts]
    if len(each) == 1:
        return each[0]
    axis = found.axis
    return (*each[0][:axis], sum(s[axis] for s in each), *each[0][axis + 1 :])


def to_ours(found: Row, array: np.ndarray, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Our arrays by path (views where possible) from one of theirs, of shape `their_shape`."""
    if len(found.parts) == 1:
        pieces = [array]
    else:
        widths = [_their_shape(p, shapes[p.path])[found.axis] for p in found.parts]
        pieces = np.split(array, np.cumsum(widths)[:-1], found.axis)
    return {
        part.path: _backwards(part, piece, shapes[part.path])
        for part, piece in zip(found.parts, pieces, strict=True)
    }


def to_theirs(found: Row, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """An array of theirs from ours by path."""
    pieces = [
        rearrange(arrays[part.path], part.pattern, **dict(part.sizes)) for part in found.parts
    ]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, found.axis)


def _backwards(part: Part, array: np.ndarray, shape: Shape) -> np.ndarray:
    ours, theirs = part.pattern.split('->')
    return rearrange(array, f'{theirs} -> {ours}', **part.lengths(shape))


def _their_shape(part: Part, shape: Shape) -> Shape:
    lengths = {**part.lengths(shape), '1': 1}
    axes = _axes(part.pattern.split('->')[1])
    return tuple(math.prod(lengths[name] for name in axis.strip('()').split()) for axis in axes)


def _axes(side: str) -> list[str]:
    """'(h d) i' -> ['(h d)', 'i']."""
    return re.findall(r'\([^)]*\)|\S+', side)
