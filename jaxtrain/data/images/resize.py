"""Images at another size, on the host."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxtrain.errors import UserError

Box = tuple[int, int, int, int]  # the first row and column, height, width
# (height, width) of an image -> the part of it that is wanted.
Region = Callable[[int, int], Box]

INTERPOLATIONS = ('auto', 'bilinear', 'bicubic', 'nearest')


@dataclass(frozen=True)
class Fit:
    """How an image gets the size that is asked for.

    Attributes:
      crop: 0 stretches it. Otherwise it is resized so that the size, divided by `crop`, is just
        covered, and the middle is cut out, as torchvision and timm do for evaluation.
      interpolation: 'auto' (by area if it shrinks, else bilinear); 'bilinear', 'bicubic' and
        'nearest' are PIL's, with antialiasing.
    """

    crop: float = 0.0
    interpolation: str = 'auto'


PLAIN = Fit()


def make_fit(cfg) -> Fit:
    """As `config.data` says. UserError for what is not known or out of range."""
    interpolation = cfg.choose('interpolation', INTERPOLATIONS)
    if not 0 <= cfg.crop <= 1:
        raise UserError(f'config.data.crop={cfg.crop} must be a share from 0 to 1')
    return Fit(float(cfg.crop), interpolation)


def asked_size(cfg) -> tuple[int, ...]:
    """(height, width) as `config.data.image_size` says, () for none. UserError for another form."""
    size = tuple(cfg.image_size)
    if size and (len(size) != 2 or min(size) < 1):
        raise UserError(
            f'config.data.image_size={size} must be (height, width), or () for as it is'
        )
    return size


def cut(image: np.ndarray, box: Box) -> np.ndarray:
    """A view of a part of an image, uint8 [h, w] or [h, w, c]."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def resize(image: np.ndarray, size: tuple[int, ...], fit: Fit = PLAIN) -> np.ndarray:
    """uint8 [h, w] or [h, w, c] -> the same at `size`."""
    if image.shape[2:] == (1,):  # which PIL does not know
        return resize(image[..., 0], size, fit)[..., None]
    if not fit.crop:
        return stretch(image, size, fit.interpolation)
    (height, width), (rows, columns) = image.shape[:2], size
    # A hair more, so that 224 / 0.875 is 256 whatever the rounding.
    down, across = (int(side / fit.crop + 1e-6) for side in size)
    if height * across <= width * down:
        across = int(down * width / height)
    else:
        down = int(across * height / width)
    image = stretch(image, (down, across), fit.interpolation)
    top, left = round((down - rows) / 2), round((across - columns) / 2)
    return image[top : top + rows, left : left + columns]


def stretch(image: np.ndarray, size: tuple[int, ...], interpolation: str = 'auto') -> np.ndarray:
    """uint8 [h, w] or [h, w, 3] -> the same at `size`, whatever its aspect."""
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
