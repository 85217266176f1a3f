"""Random parts of images for training, on the host: Szegedy et al. 2014, "Going deeper with
convolutions" (https://arxiv.org/abs/1409.4842), section 6.

The part is determined by the number that the pipeline assigns to each position in the stream of
examples.
"""

import math

import numpy as np

from jaxtrain.data.images.resize import Box, Region
from jaxtrain.errors import UserError

ASPECT = (3 / 4, 4 / 3)  # the range of width / height
TRIES = 10

Shares = tuple[float, float] | None


def make_random_crop(cfg, size: tuple[int, ...]) -> Shares:
    """Return (least, greatest) share of the area of `config.data.random_crop`; None for no crop.

    Args:
      cfg: `config.data`.
      size: (height, width) to which images are resized, () if that is not set.

    Raises:
      UserError: If the value is not two shares in ascending order, or there is no size.
    """
    shares = tuple(cfg.random_crop)
    if not shares:
        return None
    numbers = len(shares) == 2 and all(isinstance(share, int | float) for share in shares)
    if not numbers or not 0 < shares[0] <= shares[1] <= 1:
        raise UserError(
            f'config.data.random_crop={shares} must be the least and the greatest share of the '
            'area, above 0 and up to 1, such as (0.08, 1.0), or () for no crop'
        )
    if not size:
        raise UserError(
            f'config.data.random_crop={shares} needs a size for the crops; set '
            'config.data.image_size to (height, width), such as (224, 224)'
        )
    return float(shares[0]), float(shares[1])


def random_region(shares: tuple[float, float], seed: int) -> Region:
    """Return a function that gives a random part of an image of any size.

    The share of the area is uniform, the aspect log-uniform, and the position uniform. If none of
    `TRIES` parts fits into the image, the part is the largest one in the centre with an aspect in
    the allowed range.

    Args:
      shares: the least and the greatest share of the area.
      seed: the seed of the random numbers.
    """

    def region(height: int, width: int) -> Box:
        rng = np.random.default_rng(seed)
        areas = height * width * rng.uniform(*shares, TRIES)
        narrow, wide = np.log(ASPECT)
        aspects = np.exp(rng.uniform(narrow, wide, TRIES))
        offsets = rng.random(2)
        for area, aspect in zip(areas, aspects, strict=True):
            rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < rows <= height and 0 < columns <= width:
                top, left = offsets * (height - rows + 1, width - columns + 1)
                return int(top), int(left), rows, columns
        rows = min(height, max(1, round(width / ASPECT[0])))
        columns = min(width, max(1, round(height * ASPECT[1])))
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    return region
