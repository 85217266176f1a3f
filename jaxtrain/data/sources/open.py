"""Opens the data that a config names: a split of it, as a Source of examples addressed by index.

TFDS data sets are read here, without TensorFlow; the user's own images in folder.py, manifest.py
and arrays.py, and texts in text.py and corpus.py. Images that fit are decoded once and kept in
memory; a larger split batch by batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from jaxtrain.data.datasets.prepare import builder, check_split, prepare
from jaxtrain.data.images.crop import Shares, make_random_crop, random_region
from jaxtrain.data.images.decode import BadImage, Fit, Region, asked_size, decode, make_fit
from jaxtrain.data.sources.arrays import open_npz
from jaxtrain.data.sources.corpus import open_corpus
from jaxtrain.data.sources.examples import Source, first_per_class, in_memory, relabel
from jaxtrain.data.sources.folder import open_folder
from jaxtrain.data.sources.manifest import open_manifest
from jaxtrain.data.sources.text import open_text
from jaxtrain.errors import UserError

__all__ = ['Source', 'data_name', 'open_source']


def open_source(cfg, split: str, key: str, limit: int = 0, classes: tuple[str, ...] = ()) -> Source:
    """A split of the data that `config.data` names.

    Args:
      cfg: `config.data`.
      split: a split, in TFDS's notation for source='tfds'; else its plain name.
      key: the config key or flag that names the split, for messages.
      limit: keep the first `limit` examples of each class; 0 keeps all.
      classes: class names of the run, to which labels are to refer; () takes the data's own.

    Raises:
      UserError: anything wrong with the data or what the config says of it, such as an unknown
        split, images of different sizes with no `image_size`, a class that is not among `classes`,
        or a limit larger than the data.
    """
    if limit < 0:
        raise UserError(f'config.data.limit={limit} must be 0 (all) or more')
    kind = cfg.choose('source', {**IMAGES, **TEXTS})
    name = data_name(cfg)
    if not name:
        wanted = 'name is empty; give the name of a data set, such as digits'
        if kind != 'tfds':
            wanted = f'path is empty; name the folder or file of source={kind!r}'
        raise UserError(f'config.data.{wanted}')
    if kind in TEXTS:
        source = TEXTS[kind](cfg, split, key, tuple(classes))
    else:
        source = IMAGES[kind](cfg, split, key, asked_size(cfg), tuple(classes))
    return first_per_class(source, limit, f'{name!r} {split!r}') if limit else source


def data_name(cfg) -> str:
    """What the data of `config.data` is called: a TFDS name, or the path of the user's own."""
    return cfg.name if cfg.source == 'tfds' else cfg.path


def open_tfds(cfg, split: str, key: str, size: tuple[int, ...], classes: tuple[str, ...]) -> Source:
    """A split of the TFDS data set `config.data.name`, prepared on first use.

    Args, raises: as `folder.open_folder`; and UserError for a data set that is not known, or one
    without images and labels.
    """
    shares = make_random_crop(cfg, size) if split == cfg.train else None
    source = _open(cfg.name, cfg.dir, split, key, size, make_fit(cfg), cfg.memory_mib, shares)
    if classes in ((), source.classes):
        return source
    labels = relabel(source.classes, classes, f'config.data.name={cfg.name!r}')
    order = np.array([labels[name] for name in source.classes], np.int32)

    def relabelled(read: Callable) -> Callable:
        def fetch(*arguments: np.ndarray) -> dict[str, np.ndarray]:
            rows = read(*arguments)
            return {**rows, 'label': order[rows['label']]}

        return fetch

    return replace(
        source,
        fetch=relabelled(source.fetch),
        crop=source.crop and relabelled(source.crop),
        classes=classes,
        labels=None if source.labels is None else order[source.labels],
    )


IMAGES = {
    'tfds': open_tfds,
    'folder': open_folder,
    'manifest': open_manifest,
    'npz': open_npz,
}
TEXTS = {'text': open_text, 'corpus': open_corpus}


@lru_cache(maxsize=8)
def _open(
    name: str, directory: str, split: str, key: str, size: tuple[int, ...], fit: Fit,
    memory_mib: int, shares: Shares,
) -> Source:  # fmt: skip
    # Cached: the seeds and arms of a comparison share their data.
    import tensorflow_datasets as tfds

    made = builder(name, directory)
    prepare(made)
    check_split(made.info.full_name, made.info.splits, split, key)
    features = made.info.features
    if not {'image', 'label'} <= set(features):
        raise UserError(
            f'config.data.name={name!r} has the features {", ".join(features)}; '
            'a data set for classification must have image and label'
        )
    shape = features['image'].shape
    height, width = size or shape[:2]
    if None in (height, width):
        raise UserError(
            f'config.data.image_size: the images of {name!r} differ in size; give (height, width)'
        )
    image_shape = (height, width, 1 if shape[2] == 1 else 3)
    records = made.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    if any(records[i]['label'] < 0 for i in (0, len(records) - 1)):  # in TFDS, -1 for unknown
        raise UserError(
            f'{key}={split!r}: the examples of {name!r} have no labels there; name another of '
            f'its splits: {", ".join(sorted(made.info.splits))}'
        )

    # Orientation tags are left alone: data sets are stored as they are meant to be seen.
    def read(indices: np.ndarray, regions: Sequence[Region | None]) -> dict[str, np.ndarray]:
        rows = records.__getitems__([int(i) for i in indices])
        pairs = zip(rows, regions, strict=True)
        try:
            images = [
                decode(row['image'], image_shape, fit=fit, region=part) for row, part in pairs
            ]
        except BadImage as error:
            raise UserError(
                f'config.data.name={name!r}: an image of {made.data_dir} cannot be read ({error}); '
                'prepare the data set again'
            ) from error
        labels = np.array([row['label'] for row in rows], np.int32)
        return {'image': np.stack(images), 'label': labels}

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        return read(indices, [None] * len(indices))

    def crop(indices: np.ndarray, numbers: np.ndarray) -> dict[str, np.ndarray]:
        assert shares  # without them the source has no `crop`
        return read(indices, [random_region(shares, number) for number in numbers])

    source = Source(fetch, len(records), image_shape, tuple(features['label'].names))
    if shares:
        return replace(source, crop=crop)
    fits = len(records) * int(np.prod(image_shape)) <= memory_mib * 2**20
    return in_memory(source) if fits else source
