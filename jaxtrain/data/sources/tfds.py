"""Data sets of TFDS, read without TensorFlow.

Images that fit are decoded once and kept in memory; a larger split is decoded batch by batch.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from jaxtrain.data.features import classified_image
from jaxtrain.data.images.decode import BadImage
from jaxtrain.data.images.transforms import ImageSettings, image_settings, make_transforms
from jaxtrain.data.sources.source import Source, in_memory, relabel
from jaxtrain.errors import UserError


def open_tfds(cfg, split: str, key: str, classes: tuple[str, ...]) -> Source:
    """A split of the TFDS data set `config.data.name`, prepared on first use.

    Args, raises: as `folder.open_folder`; and UserError for a data set that is not known, or one
    without images and labels.
    """
    wanted = _Wanted(cfg.name, cfg.dir, split, key, cfg.memory_mib)
    source = _open(wanted, image_settings(cfg, split))
    if classes in ((), source.classes):
        return source
    labels = relabel(source.classes, classes, f'config.data.name={cfg.name!r}')
    order = np.array([labels[name] for name in source.classes], np.int32)

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        rows = source.fetch(indices, numbers)
        return {**rows, 'label': order[rows['label']]}

    known = None if source.labels is None else order[source.labels]
    return replace(source, fetch=fetch, classes=classes, labels=known)


def image_shape(
    name: str, size: tuple[int, ...], own: tuple[int | None, ...]
) -> tuple[int, int, int]:
    """(height, width, channels) of images as the model is given them.

    Args:
      name: of the data set.
      size: (height, width) that is asked for, or ().
      own: the shape of the data set's images, None for what differs.

    Raises:
      UserError: neither has a size.
    """
    height, width = size or own[:2]
    if height is None or width is None:
        raise UserError(
            f'config.data.image_size: the images of {name!r} differ in size; give (height, width)'
        )
    return height, width, 1 if own[2] == 1 else 3


@dataclass(frozen=True)
class _Wanted:
    """What is opened: keys of `config.data`, and the key that names the split."""

    name: str
    dir: str
    split: str
    key: str
    memory_mib: int


@lru_cache(maxsize=8)
def _open(wanted: _Wanted, settings: ImageSettings) -> Source:
    # Cached: the seeds and arms of a comparison share their data.
    made = _prepared(wanted)
    features = made.info.features
    shape = image_shape(wanted.name, settings.size, features['image'].shape)
    # Orientation tags are left alone: data sets are stored as they are meant to be seen.
    transforms = make_transforms(settings, shape)
    records = _records(made, wanted)

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        rows = records.__getitems__([int(i) for i in indices])
        try:
            images = transforms.batch([row['image'] for row in rows], numbers)
        except BadImage as error:
            raise UserError(
                f'config.data.name={wanted.name!r}: an image of {made.data_dir} cannot be read '
                f'({error}); prepare the data set again'
            ) from error
        return {'image': images, 'label': np.array([row['label'] for row in rows], np.int32)}

    source = Source(
        fetch, len(records), classified_image(*shape), 'image', tuple(features['label'].names)
    )
    fits = len(records) * int(np.prod(shape)) <= wanted.memory_mib * 2**20
    return in_memory(source) if fits and not transforms.random else source


def _prepared(wanted: _Wanted):
    """The builder of a data set of images with classes that has the split, ready to be read."""
    from jaxtrain.data.datasets.prepare import builder, check_split, prepare

    made = builder(wanted.name, wanted.dir)
    prepare(made)
    check_split(made.info.full_name, made.info.splits, wanted.split, wanted.key)
    features = made.info.features
    if not {'image', 'label'} <= set(features):
        raise UserError(
            f'config.data.name={wanted.name!r} has the features {", ".join(features)}; '
            'a data set for classification must have image and label'
        )
    return made


def _records(made, wanted: _Wanted):
    """The examples as they are stored, images encoded. UserError if they have no labels."""
    import tensorflow_datasets as tfds

    records = made.as_data_source(wanted.split, decoders={'image': tfds.decode.SkipDecoding()})
    if any(records[i]['label'] < 0 for i in (0, len(records) - 1)):  # in TFDS, -1 for unknown
        raise UserError(
            f'{wanted.key}={wanted.split!r}: the examples of {wanted.name!r} have no labels there; '
            f'name another of its splits: {", ".join(sorted(made.info.splits))}'
        )
    return records
