"""Host transforms, which are applied to each image between its file and the batch.

A transform is `f(image, number) -> image`: a function, or a small frozen dataclass if it has
settings. The image is the bytes of a file until it is decoded, then uint8 [height, width] or
[height, width, channels]. The number determines random choices; it is None where no random choice
is made. To add a transform, define it here and use it in `make_transforms`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.data.images.crop import Shares, make_random_crop, random_region
from jaxtrain.data.images.decode import BadImage, decode, decode_part
from jaxtrain.data.images.resize import PLAIN, Fit, cut, make_fit, requested_size, resize, stretch
from jaxtrain.errors import UserError

Image = bytes | np.ndarray
# (image, number) -> image. Some accept only bytes or only pixels, and some require a number.
Transform = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Decode:
    """A transform that decodes bytes and leaves pixels unchanged."""

    channels: int
    upright: bool = False

    def __call__(self, image: Image, number: int | None) -> np.ndarray:
        if isinstance(image, bytes):
            return decode(image, self.channels, self.upright)
        return image


@dataclass(frozen=True)
class Resize:
    """A transform that resizes the whole image."""

    size: tuple[int, int]
    fit: Fit = PLAIN

    def __call__(self, image: np.ndarray, number: int | None) -> np.ndarray:
        return resize(image, self.size, self.fit)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A transform that resizes a random part of the image, by area if it shrinks, else bilinear.

    It decodes bytes itself, because decoding a part of a JPEG is cheaper than decoding all of it.
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
    """The host transforms of the images of a split, in order.

    Attributes:
      shape: (height, width, channels) of the output.
      fixed: the transforms where no number is given.
      random: the transforms where a number is given; () uses `fixed`.
    """

    shape: tuple[int, int, int]
    fixed: tuple[Transform, ...]
    random: tuple[Transform, ...] = ()

    def __call__(self, image: Image, number: int | None = None) -> np.ndarray:
        """Transform an image to uint8 [height, width, channels]; raise BadImage if it is broken."""
        out: Any = image
        for transform in self.fixed if number is None else self.random or self.fixed:
            out = transform(out, number)
        return out.reshape(self.shape)

    def batch(self, images: Sequence[Image], numbers: np.ndarray | None = None) -> np.ndarray:
        """Transform several images to uint8 [images, height, width, channels]."""
        pairs = zip(images, each(numbers, len(images)), strict=True)
        return np.stack([self(image, number) for image, number in pairs])


@dataclass(frozen=True)
class ImageSettings:
    """The settings of `config.data` for the images of a split.

    Attributes:
      size: (height, width) to which images are resized, () to keep their size.
      fit: how whole images are resized.
      shares: the range of the area of random crops in training; None uses whole images.
    """

    size: tuple[int, ...]
    fit: Fit
    shares: Shares


def image_settings(cfg, split: str) -> ImageSettings:
    """Return the settings of `config.data` for a split; raise UserError for an invalid key."""
    size = requested_size(cfg)
    fit = make_fit(cfg)
    return ImageSettings(size, fit, make_random_crop(cfg, size) if split == cfg.train else None)


def make_transforms(
    settings: ImageSettings, shape: tuple[int, int, int], upright: bool = False
) -> Transforms:
    """Return the transforms of a split's images.

    Args:
      settings: the settings of the split.
      shape: (height, width, channels) of the output.
      upright: whether to apply the EXIF orientation of files.
    """
    fixed = (Decode(shape[2], upright), Resize(shape[:2], settings.fit))
    if settings.shares is None:
        return Transforms(shape, fixed)
    return Transforms(shape, fixed, (RandomResizedCrop(shape, settings.shares, upright),))


def each(numbers: np.ndarray | None, count: int) -> Iterable[int | None]:
    """Return the numbers of `count` examples, or None for each of them."""
    return [None] * count if numbers is None else numbers


def read_image(path: str, transforms: Transforms, number: int | None = None) -> np.ndarray:
    """Read and transform the image in a file.

    Raises:
      BadImage: If the file is missing, is not an image, or is broken; the message names the file.
      UserError: If the file system failed, in which case the image may be fine.
    """
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise BadImage(f'{path} cannot be read ({error.strerror}); fix or remove it') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); try again') from error
    try:
        return transforms(data, number)
    except BadImage as error:
        raise BadImage(
            f'{path} cannot be read as an image ({error}); replace or remove it'
        ) from error
