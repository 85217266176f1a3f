"""Features: the shape, dtype and meaning of each array of an example.

A source declares its features. Code that needs to know whether data is images or text looks at the
meaning, never at the length of a shape.
"""

from dataclasses import dataclass

import numpy as np

# The meanings of features.
IMAGE = 'image'  # pixels, uint8 [height, width, channels], 0 to 255
TOKENS = 'tokens'  # a text as token ids, int32 [length]
CLASS = 'class'  # the index of a class, int32 []
CLASS_SET = 'class set'  # 1 for each class that is present, float32 [classes]
NUMBERS = 'numbers'  # float32 [numbers]
NEXT_TOKENS = 'next tokens'  # the token after each token, int32 [length]; -1 is ignored

# The array of a meaning, in an example and in a batch.
ARRAYS = {
    IMAGE: 'image',
    TOKENS: 'tokens',
    CLASS: 'label',
    CLASS_SET: 'labels',
    NUMBERS: 'numbers',
    NEXT_TOKENS: 'targets',
}

# The plural names of a model's inputs.
UNITS = {IMAGE: 'images', TOKENS: 'tokens'}
_DTYPES = {
    IMAGE: np.uint8,
    TOKENS: np.int32,
    CLASS: np.int32,
    CLASS_SET: np.float32,
    NUMBERS: np.float32,
    NEXT_TOKENS: np.int32,
}


@dataclass(frozen=True)
class Feature:
    """One array of an example.

    Attributes:
      shape: the shape without the axis of examples.
      dtype: the NumPy dtype.
      meaning: one of the constants above.
    """

    shape: tuple[int, ...]
    dtype: type
    meaning: str


def feature(meaning: str, *shape: int) -> Feature:
    """Return a feature with that meaning and its dtype."""
    return Feature(shape, _DTYPES[meaning], meaning)


def classified_image(*shape: int) -> dict[str, Feature]:
    """Return the features of an image [height, width, channels] with a class."""
    return _by_name(feature(IMAGE, *shape), feature(CLASS))


def classified_tokens(length: int) -> dict[str, Feature]:
    """Return the features of a text with a class."""
    return _by_name(feature(TOKENS, length), feature(CLASS))


def continued_tokens(length: int) -> dict[str, Feature]:
    """Return the features of a window of text with next-token targets."""
    return _by_name(feature(TOKENS, length), feature(NEXT_TOKENS, length))


def _by_name(*features: Feature) -> dict[str, Feature]:
    return {ARRAYS[feature.meaning]: feature for feature in features}
