"""Features: what each array of an example is, its shape, its dtype and its meaning.

A source declares its features; whoever needs to know whether data is images or text looks at the
meaning, never at the length of a shape.
"""

from dataclasses import dataclass

import numpy as np

# The words for what a feature means.
IMAGE = 'image'  # pixels, uint8 [height, width, channels], 0 to 255
TOKENS = 'tokens'  # a text as the numbers of a tokenizer, int32 [length]
CLASS = 'class'  # the index of a class, int32 []
NEXT_TOKENS = 'next tokens'  # the token that follows each, int32 [length]; -1 is not counted

# What inputs of a model are called when there are several.
UNITS = {IMAGE: 'images', TOKENS: 'tokens'}
_DTYPES = {IMAGE: np.uint8, TOKENS: np.int32, CLASS: np.int32, NEXT_TOKENS: np.int32}


@dataclass(frozen=True)
class Feature:
    """One array of an example.

    Attributes:
      shape: without the axis of examples.
      dtype: NumPy's.
      meaning: one of the words above.
    """

    shape: tuple[int, ...]
    dtype: type
    meaning: str


def feature(meaning: str, *shape: int) -> Feature:
    """A feature of that meaning, in its dtype."""
    return Feature(shape, _DTYPES[meaning], meaning)


def classified_image(*shape: int) -> dict[str, Feature]:
    """The features of an image [height, width, channels] with a class."""
    return {'image': feature(IMAGE, *shape), 'label': feature(CLASS)}


def classified_tokens(length: int) -> dict[str, Feature]:
    """The features of a text with a class."""
    return {'tokens': feature(TOKENS, length), 'label': feature(CLASS)}


def continued_tokens(length: int) -> dict[str, Feature]:
    """The features of a window of text whose every token is followed by another."""
    return {'tokens': feature(TOKENS, length), 'targets': feature(NEXT_TOKENS, length)}
