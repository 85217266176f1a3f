"""Sources: examples addressed by index. Here, splits of TFDS data sets, read without TensorFlow.

A source fetches many examples at once, as uint8 images and int32 labels. A split that fits is
decoded once and kept in memory; a larger one is decoded batch by batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from jaxtrain.config import nearest
from jaxtrain.data.prepare import builder, prepare
from jaxtrain.errors import UserError


@dataclass(frozen=True)
class Source:
    """Examples of one split.

    Attributes:
      fetch: indices [n] -> {'image': uint8 [n, height, width, channels], 'label': int32 [n]}.
      size: number of examples.
      image_shape: (height, width, channels).
      classes: class names by label.
    """

    fetch: Callable[[np.ndarray], dict[str, np.ndarray]]
    size: int
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return self.size


def open_source(cfg, split: str, key: str, limit: int = 0) -> Source:
    """The split of `config.data.name`, prepared on first use.

    Args:
      cfg: `config.data`.
      split: a split in TFDS's notation.
      key: the config key or flag that names the split, for messages.
      limit: keep the first `limit` examples of each class; 0 keeps all.

    Raises:
      UserError: unknown data set or split, a data set without images and labels, images of
        different sizes with no `image_size`, or a limit larger than the data.
    """
    if not cfg.name:
        raise UserError('config.data.name is empty; give the name of a data set, such as digits')
    size = tuple(cfg.image_size)
    if size and (len(size) != 2 or min(size) < 1):
        raise UserError(
            f'config.data.image_size={size} must be (height, width), or () for as it is'
        )
    source = _open(cfg.name, cfg.dir, split, key, size, cfg.memory_mib)
    return _first_per_class(source, limit, cfg.name, split) if limit else source


@lru_cache(maxsize=8)
def _open(
    name: str, directory: str, split: str, key: str, size: tuple[int, ...], memory_mib: int
) -> Source:
    # Cached: the seeds and arms of a comparison share their data.
    import tensorflow_datasets as tfds

    made = builder(name, directory)
    prepare(made)
    _check_split(made, split, key)
    features = made.info.features
    if not {'image', 'label'} <= set(features):
        raise UserError(
            f'config.data.name={name!r} has the features {", ".join(features)}; '
            'a data set for classification must have image and label'
        )
    shape = features['image'].shape
    height, width = size or shape[:2]
    channels = shape[2] or 3
    if None in (height, width):
        raise UserError(
            f'config.data.image_size: the images of {name!r} differ in size; give (height, width)'
        )
    records = made.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    classes = tuple(features['label'].names)

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = records.__getitems__([int(i) for i in indices])
        images = np.stack([decode(row['image'], (height, width, channels)) for row in rows])
        return {'image': images, 'label': np.array([row['label'] for row in rows], np.int32)}

    source = Source(fetch, len(records), (height, width, channels), classes)
    fits = len(records) * height * width * channels <= memory_mib * 2**20
    return _in_memory(source) if fits else source


def decode(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Encoded image -> uint8 [height, width, channels] (RGB, or grey for one channel).

    Args:
      data: PNG, JPEG or another format that OpenCV reads.
      shape: (height, width, channels) to return; another size is resized to it.
    """
    # Orientation tags are left alone: data sets are stored as they are meant to be seen.
    mode = cv2.IMREAD_GRAYSCALE if shape[2] == 1 else cv2.IMREAD_COLOR_RGB
    image = cv2.imdecode(np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    height, width = shape[:2]
    if image.shape[:2] != (height, width):
        shrinks = image.shape[0] > height or image.shape[1] > width
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = cv2.resize(image, (width, height), interpolation=method)
    return image.reshape(shape)


def _in_memory(source: Source) -> Source:
    parts = [
        source.fetch(np.arange(start, min(start + 4096, len(source))))
        for start in range(0, len(source), 4096)
    ]
    images = np.concatenate([part['image'] for part in parts])
    labels = np.concatenate([part['label'] for part in parts])

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        return {'image': images[indices], 'label': labels[indices]}

    return Source(fetch, source.size, source.image_shape, source.classes)


def _first_per_class(source: Source, limit: int, name: str, split: str) -> Source:
    """The first `limit` examples of each class, in the order of the data set."""
    if limit < 0:
        raise UserError(f'config.data.limit={limit} must be 0 (all) or more')
    kept: list[int] = []
    counts = np.zeros(len(source.classes), int)
    for start in range(0, len(source), 4096):
        labels = source.fetch(np.arange(start, min(start + 4096, len(source))))['label']
        for offset, label in enumerate(labels):
            if counts[label] < limit:
                counts[label] += 1
                kept.append(start + offset)
        if counts.min() == limit:
            break
    if counts.min() < limit:
        rarest = int(counts.argmin())
        raise UserError(
            f'config.data.limit={limit} is larger than the data: class '
            f'{source.classes[rarest]!r} has {counts[rarest]} examples in {name!r} {split!r}'
        )
    chosen = np.array(kept)
    return Source(
        lambda indices: source.fetch(chosen[indices]), len(chosen), source.image_shape,
        source.classes,
    )  # fmt: skip


def _check_split(made, split: str, key: str) -> None:
    known: Sequence[str] = sorted(made.info.splits)
    if not {part.split('[')[0].strip() for part in split.split('+')} <= {*known, 'all'}:
        raise UserError(
            f'{key}={split!r}: data set {made.info.full_name!r} has no such split'
            f'{nearest(split, known)}; it has {", ".join(known)}'
        )
    try:
        empty = made.info.splits[split].num_examples == 0
    except Exception as error:
        raise UserError(
            f'{key}={split!r} is not a split that TFDS understands; '
            f"write it like 'train', 'train[:80%]' or 'train[:1000]'"
        ) from error
    if empty:
        raise UserError(f'{key}={split!r} holds no examples; choose a larger part')
