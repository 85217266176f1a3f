"""The source 'tfds': data sets of TFDS, read without TensorFlow.

A split that fits into `memory_mib` is decoded once and kept in memory; a larger split is decoded
batch by batch.
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
    """Open a split of the TFDS data set `config.data.name`, which is prepared on first use.

    Args, Raises: As in `folder.open_folder`; also UserError if the data set is unknown, or has no
    images or labels.
    """
    request = _Request(cfg.name, cfg.dir, split, key, cfg.memory_mib)
    source = _open(request, image_settings(cfg, split))
    if classes in ((), source.classes):
        return source
    labels = relabel(source.classes, classes, f'config.data.name={cfg.name!r}')
    order = np.array([labels[name] for name in source.classes], np.int32)

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        rows = source.fetch(indices, numbers)
        return {**rows, 'label': order[rows['label']]}

    relabelled = None if source.labels is None else order[source.labels]
    return replace(source, fetch=fetch, classes=classes, labels=relabelled)


def image_shape(
    name: str, size: tuple[int, ...], stored: tuple[int | None, ...]
) -> tuple[int, int, int]:
    """Return (height, width, channels) of the images that the source returns.

    Args:
      name: the name of the data set.
      size: the requested (height, width), or ().
      stored: the shape of the stored images, with None for axes that differ between images.

    Raises:
      UserError: If no size is requested and stored images differ in size.
    """
    height, width = size or stored[:2]
    if height is None or width is None:
        raise UserError(
            f'config.data.image_size: the images of {name!r} differ in size; give (height, width)'
        )
    return height, width, 1 if stored[2] == 1 else 3


@dataclass(frozen=True)
class _Request:
    """The split to open: keys of `config.data`, and the key that names the split."""

    name: str
    dir: str
    split: str
    key: str
    memory_mib: int


@lru_cache(maxsize=8)
def _open(request: _Request, settings: ImageSettings) -> Source:
    # Cached: the seeds and arms of a comparison share their data.
    dataset = _prepared(request)
    features = dataset.info.features
    shape = image_shape(request.name, settings.size, features['image'].shape)
    # EXIF orientation is ignored, because data sets store images upright.
    transforms = make_transforms(settings, shape)
    records = _records(dataset, request)

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        rows = records.__getitems__([int(i) for i in indices])
        try:
            images = transforms.batch([row['image'] for row in rows], numbers)
        except BadImage as error:
            raise UserError(
                f'config.data.name={request.name!r}: an image of {dataset.data_dir} cannot be read '
                f'({error}); prepare the data set again'
            ) from error
        return {'image': images, 'label': np.array([row['label'] for row in rows], np.int32)}

    source = Source(
        fetch, len(records), classified_image(*shape), 'image', tuple(features['label'].names),
        random=bool(transforms.random),
    )  # fmt: skip
    fits = len(records) * int(np.prod(shape)) <= request.memory_mib * 2**20
    return in_memory(source) if fits and not transforms.random else source


def _prepared(request: _Request):
    """Return a prepared builder, which has the split and the features image and label."""
    from jaxtrain.data.datasets.prepare import builder, check_split, prepare

    dataset = builder(request.name, request.dir)
    prepare(dataset)
    check_split(dataset.info.full_name, dataset.info.splits, request.split, request.key)
    features = dataset.info.features
    if not {'image', 'label'} <= set(features):
        raise UserError(
            f'config.data.name={request.name!r} has the features {", ".join(features)}; '
            'a data set for classification must have image and label'
        )
    return dataset


def _records(dataset, request: _Request):
    """Return the stored examples, with encoded images; raise UserError if they have no labels."""
    import tensorflow_datasets as tfds

    records = dataset.as_data_source(request.split, decoders={'image': tfds.decode.SkipDecoding()})
    # TFDS uses the label -1 for unknown. Splits may be joined, so check the first and last example.
    if any(records[i]['label'] < 0 for i in (0, len(records) - 1)):
        raise UserError(
            f'{request.key}={request.split!r}: the examples of {request.name!r} have no labels; '
            f'choose another of its splits: {", ".join(sorted(dataset.info.splits))}'
        )
    return records
