"""Assigns the examples of a data set to splits, by a hash of each example's name.

The assignment of an example depends only on its name and the seed. So adding, removing or
reordering other examples never moves it from training to test, and neither does moving the data
set.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from jaxtrain.errors import UserError, nearest


def deal(cfg, names: Sequence[str], split: str, key: str) -> np.ndarray:
    """Return the indices of the examples in a split, int64, in ascending order.

    Args:
      cfg: `config.data`; its shares and split_seed are used.
      names: the name of each example, the same on every machine.
      split: a split of `config.data.shares`.
      key: the config key or flag that names the split, for messages.

    Raises:
      UserError: If the shares are invalid, or the split has no share or no examples.
    """
    low, high = bounds(cfg.shares, split, key)
    positions = np.array([position(name, cfg.split_seed) for name in names])
    indices = np.flatnonzero((low <= positions) & (positions < high))
    if not len(indices):
        raise UserError(
            f'{key}={split!r}: none of the {len(names)} examples of {cfg.path} falls into it; give '
            'it a larger share in config.data.shares, or add examples'
        )
    return indices


def position(name: str, seed: int) -> float:
    """Return the position of an example in [0, 1): the first 53 bits of the SHA-256 of 'SEED/NAME'.

    The name is converted to Unicode's composed form first, because file systems differ in the form
    that they use.
    """
    text = unicodedata.normalize('NFC', f'{seed}/{name}')
    digest = hashlib.sha256(text.encode('utf-8', 'surrogateescape')).digest()
    return (int.from_bytes(digest[:8], 'big') >> 11) / 2**53


def bounds(shares: tuple, split: str, key: str) -> tuple[float, float]:
    """Return the interval of [0, 1) that belongs to a split of `config.data.shares`.

    Raises:
      UserError: If the shares are invalid or the split, which `key` names, has no share.
    """
    try:
        names = [str(name) for name, _ in shares]
        parts = [float(part) for _, part in shares]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.data.shares={shares} must be pairs, like (('train', 0.8), ('test', 0.2))"
        ) from error
    if len(set(names)) < len(names) or not all(p > 0 for p in parts) or sum(parts) > 1 + 1e-9:
        raise UserError(
            f'config.data.shares={shares} must name each split once, with shares above 0 that sum '
            'to at most 1'
        )
    if split not in names:
        raise UserError(
            f'{key}={split!r} has no share in config.data.shares{nearest(split, names)}, which has '
            f'{", ".join(names)}; choose one of them, or give it a share'
        )
    # Round, so that shares that sum to 1 end at 1: 0.8 + 0.1 + 0.1 < 1 in floating point.
    edges = np.round(np.cumsum([0.0, *parts]), 12)
    at = names.index(split)
    return edges[at], edges[at + 1]
