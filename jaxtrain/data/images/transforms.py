"""Host transforms: what becomes of an image between its file and the batch.

A transform is `f(image, number) -> image`: a function, or a small frozen dataclass where it has
settings. The image is the bytes of a file until it is decoded, then uint8 [height, width] or
[height, width, channels]; the number is what a random choice goes by, None where none is made. To
add one, write it here and name it in `make_transforms`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.data.images.crop import Shares, make_random_crop, random_region
from jaxtrain.data.images.decode import BadImage, decode, decode_part
from jaxtrain.data.images.resize import PLAIN, Fit, asked_size, cut, make_fit, resize, stretch
from jaxtrain.errors import UserError

Image = bytes | np.ndarray
# (image, number) -> image. Some take only bytes or only pixels, and some need a number.
Transform = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Decode:
    """Bytes to pixels; pixels stay as they are."""

    channels: int
    upright: bool = False

    def __call__(self, image: Image, number: int | None) -> np.ndarray:
        if isinstance(image, bytes):
            return decode(image, self.channels, self.upright)
        return image


@dataclass(frozen=True)
class Resize:
    """The whole image at another size."""

    size: tuple[int, int]
    fit: Fit = PLAIN

    def __call__(self, image: np.ndarray, number: int | None) -> np.ndarray:
        return resize(image, self.size, self.fit)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image at (height, width, channels), by area if it shrinks, else
    bilinear. It decodes bytes itself, because a small part of a JPEG takes less.
    """

    shape: tuple[int, int, int]
    shares: tuple[float, float]
    upright: bool = False

    def __call__(self, image: Image, number: int) -> np.ndarray:
        region = random_region(self.shares, number)
        if isinstance(image, bytes):
            part = decode_part(image, self.shape, region, self.upright)
        else:
            part = cut(image, region(*image.shape[:2]))
        return stretch(part, self.shape[:2])


@dataclass(frozen=True)
class Transforms:
    """What the host does to each image of a split.

    Attributes:
      shape: (height, width, channels) that comes out.
      fixed: in order, where there is no number.
      random: in order, where there is one; () for the same as without.
    """

    shape: tuple[int, int, int]
    fixed: tuple[Transform, ...]
    random: tuple[Transform, ...] = ()

    def __call__(self, image: Image, number: int | None = None) -> np.ndarray:
        """uint8 [height, width, channels]. BadImage for bytes that are no image."""
        out: Any = image
        for transform in self.fixed if number is None else self.random or self.fixed:
            out = transform(out, number)
        return out.reshape(self.shape)

    def batch(self, images: Sequence[Image], numbers: np.ndarray | None = None) -> np.ndarray:
        """uint8 [images, height, width, channels]."""
        pairs = zip(images, each(numbers, len(images)), strict=True)
        return np.stack([self(image, number) for image, number in pairs])


@dataclass(frozen=True)
class ImageSettings:
    """What `config.data` says of the images of a split.

    Attributes:
      size: (height, width) that they get, () to leave them as they are.
      fit: how the whole of one gets it.
      shares: of the random part that is trained on; None for the whole.
    """

    size: tuple[int, ...]
    fit: Fit
    shares: Shares


def image_settings(cfg, split: str) -> ImageSettings:
    """As `config.data` says, for a split. UserError for what is malformed or out of range."""
    size = asked_size(cfg)
    fit = make_fit(cfg)
    return ImageSettings(size, fit, make_random_crop(cfg, size) if split == cfg.train else None)


def make_transforms(
    settings: ImageSettings, shape: tuple[int, int, int], upright: bool = False
) -> Transforms:
    """The transforms of a split's images.

    Args:
      settings: what is asked for.
      shape: (height, width, channels) that comes out.
      upright: whether files are turned as their EXIF orientation says.
    """
    fixed = (Decode(shape[2], upright), Resize(shape[:2], settings.fit))
    if settings.shares is None:
        return Transforms(shape, fixed)
    return Transforms(shape, fixed, (RandomResizedCrop(shape, settings.shares, upright),))


def each(numbers: np.ndarray | None, count: int) -> Iterable[int | None]:
    """A number for each of `count` examples, or as often None."""
    return [None] * count if numbers is None else numbers


def read_image(path: str, transforms: Transforms, number: int | None = None) -> np.ndarray:
    """The image in a file, transformed.

    Raises:
      BadImage: no such file, not an image, or a broken one; the message names the file.
      UserError: the file system failed, which says nothing about the image.
    """
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise BadImage(f'{path} cannot be read ({error.strerror}); mend or remove it') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); try again') from error
    try:
        return transforms(data, number)
    except BadImage as error:
        raise BadImage(
            f'{path} cannot be read as an image ({error}); replace or remove it'
        ) from error
