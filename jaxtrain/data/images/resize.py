"""Resizes images on the host."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxtrain.errors import UserError

Box = tuple[int, int, int, int]  # the first row and column, height, width
# (height, width) of an image -> the requested part of it.
Region = Callable[[int, int], Box]

ROUNDINGS: dict[str, Callable[[float], int]] = {'nearest': round, 'down': int}
INTERPOLATIONS = ('auto', 'bilinear', 'bicubic', 'nearest')


@dataclass(frozen=True)
class Fit:
    """How images are resized.

    Attributes:
      crop: 0 stretches the image. Otherwise it is resized to just cover the size divided by `crop`,
        and cropped at the centre, as torchvision and timm do for evaluation.
      rounding: how the margins of the crop are rounded: 'nearest' (torchvision) or 'down'
        (transformers).
      interpolation: 'auto' (by area if the image shrinks, otherwise bilinear); 'bilinear',
        'bicubic' and 'nearest' are PIL's, with antialiasing.
    """

    crop: float = 0.0
    interpolation: str = 'auto'
    rounding: str = 'nearest'


PLAIN = Fit()


def make_fit(cfg) -> Fit:
    """Return the `Fit` of `config.data`; raise UserError for an invalid key."""
    interpolation = cfg.choose('interpolation', INTERPOLATIONS)
    if not 0 <= cfg.crop <= 1:
        raise UserError(f'config.data.crop={cfg.crop} must be from 0 to 1')
    return Fit(float(cfg.crop), interpolation, cfg.choose('crop_rounding', ROUNDINGS))


def requested_size(cfg) -> tuple[int, ...]:
    """Return `config.data.image_size`, (height, width) or (); raise UserError for another form."""
    size = tuple(cfg.image_size)
    if size and (len(size) != 2 or min(size) < 1):
        raise UserError(
            f'config.data.image_size={size} must be (height, width), or () to keep the size'
        )
    return size


def cut(image: np.ndarray, box: Box) -> np.ndarray:
    """Return a view of a part of an image, uint8 [h, w] or [h, w, c]."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def resize(image: np.ndarray, size: tuple[int, ...], fit: Fit = PLAIN) -> np.ndarray:
    """Resize an image, uint8 [h, w] or [h, w, c], to `size` as `fit` specifies."""
    if image.shape[2:] == (1,):  # a shape that PIL does not support
        return resize(image[..., 0], size, fit)[..., None]
    if not fit.crop:
        return stretch(image, size, fit.interpolation)
    (height, width), (rows, columns) = image.shape[:2], size
    # The small addition makes 224 / 0.875 equal 256 despite rounding errors.
    new_height, new_width = (int(side / fit.crop + 1e-6) for side in size)
    if height * new_width <= width * new_height:
        new_width = int(new_height * width / height)
    else:
        new_height = int(new_width * height / width)
    image = stretch(image, (new_height, new_width), fit.interpolation)
    to_integer = ROUNDINGS[fit.rounding]
    top, left = to_integer((new_height - rows) / 2), to_integer((new_width - columns) / 2)
    return image[top : top + rows, left : left + columns]


def stretch(image: np.ndarray, size: tuple[int, ...], interpolation: str = 'auto') -> np.ndarray:
    """Resize an image, uint8 [h, w] or [h, w, 3], to `size` without keeping its aspect."""
    height, width = size
    if image.shape[:2] == size:
        return image
    image = np.ascontiguousarray(image)
    if interpolation != 'auto':
        from PIL import Image

        filter = Image.Resampling[interpolation.upper()]
        return np.asarray(Image.fromarray(image).resize((width, height), filter))
    import cv2

    shrinks = image.shape[0] > height or image.shape[1] > width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)
