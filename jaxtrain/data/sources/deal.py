"""Deals the examples of one set out to splits, by a hash of each example's name.

An example's place depends on its own name and the seed alone. So adding, removing or reordering
examples moves no other one from training to test, and neither does moving the whole set.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from jaxtrain.errors import UserError, nearest


def deal(cfg, names: Sequence[str], split: str, key: str) -> np.ndarray:
    """Indices of the examples that fall into a split, int64, in order.

    Args:
      cfg: `config.data`; reads shares and split_seed.
      names: what each example is called, the same on every machine.
      split: a split of `config.data.shares`.
      key: the config key or flag that names the split, for messages.

    Raises:
      UserError: shares that are none, a split that has none, or one that is left empty.
    """
    low, high = bounds(cfg.shares, split, key)
    places = np.array([place(name, cfg.split_seed) for name in names])
    indices = np.flatnonzero((low <= places) & (places < high))
    if not len(indices):
        raise UserError(
            f'{key}={split!r}: none of the {len(names)} examples of {cfg.path} falls into it; give '
            'it a larger share in config.data.shares, or add data'
        )
    return indices


def place(name: str, seed: int) -> float:
    """Where an example lies in [0, 1): the first 53 bits of the sha256 of 'SEED/NAME'.

    The name is brought into Unicode's composed form first, because file systems differ in theirs.
    """
    text = unicodedata.normalize('NFC', f'{seed}/{name}')
    digest = hashlib.sha256(text.encode('utf-8', 'surrogateescape')).digest()
    return (int.from_bytes(digest[:8], 'big') >> 11) / 2**53


def bounds(shares: tuple, split: str, key: str) -> tuple[float, float]:
    """The stretch of [0, 1) that belongs to a split of `config.data.shares`.

    Raises:
      UserError: shares that are none, or a split that has none; `key` names it in the message.
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
            f'{", ".join(names)}; name one of them, or give it a share'
        )
    # Rounded, so that shares which sum to 1 reach up to it: 0.8 + 0.1 + 0.1 < 1 in floating point.
    edges = np.round(np.cumsum([0.0, *parts]), 12)
    at = names.index(split)
    return edges[at], edges[at + 1]
