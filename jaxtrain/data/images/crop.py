"""Random parts of images for training, on the host: Szegedy et al. 2014, "Going deeper with
convolutions" (https://arxiv.org/abs/1409.4842), section 6.

Which part it is goes by a number that the pipeline gives each place in the stream of examples.
"""

import math

import numpy as np

from jaxtrain.data.images.resize import Box, Region
from jaxtrain.errors import UserError

ASPECT = (3 / 4, 4 / 3)  # least and greatest, width by height
TRIES = 10

Shares = tuple[float, float] | None


def make_random_crop(cfg, size: tuple[int, ...]) -> Shares:
    """(least, most) share of the area, as `config.data.random_crop` says; None for no crop.

    Args:
      cfg: `config.data`.
      size: (height, width) that images get, () if that was left open.

    Raises:
      UserError: not two shares in order, or no size.
    """
    shares = tuple(cfg.random_crop)
    if not shares:
        return None
    numbers = len(shares) == 2 and all(isinstance(share, int | float) for share in shares)
    if not numbers or not 0 < shares[0] <= shares[1] <= 1:
        raise UserError(
            f'config.data.random_crop={shares} must be the least and the greatest share of the '
            'area, above 0 and up to 1, such as (0.08, 1.0), or () for none'
        )
    if not size:
        raise UserError(
            f'config.data.random_crop={shares} needs a size for what it cuts out; set '
            'config.data.image_size to (height, width), such as (224, 224)'
        )
    return float(shares[0]), float(shares[1])


def random_region(shares: tuple[float, float], seed: int) -> Region:
    """A part of any image: a share of its area and an aspect, log-uniform, that fit into it.

    If none of ten does, it is the largest part of such an aspect in the middle.
    """

    def region(height: int, width: int) -> Box:
        rng = np.random.default_rng(seed)
        areas = height * width * rng.uniform(*shares, TRIES)
        narrow, wide = np.log(ASPECT)
        aspects = np.exp(rng.uniform(narrow, wide, TRIES))
        places = rng.random(2)
        for area, aspect in zip(areas, aspects, strict=True):
            down, across = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < down <= height and 0 < across <= width:
                top, left = places * (height - down + 1, width - across + 1)
                return int(top), int(left), down, across
        down = min(height, max(1, round(width / ASPECT[0])))
        across = min(width, max(1, round(height * ASPECT[1])))
        return (height - down) // 2, (width - across) // 2, down, across

    return region
