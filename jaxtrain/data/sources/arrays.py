"""The source 'npz': arrays in npz files, as numpy.savez writes them."""

import os
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxtrain.data.features import classified_image
from jaxtrain.data.images.transforms import (
    ImageSettings,
    Transforms,
    image_settings,
    make_transforms,
)
from jaxtrain.data.sources.deal import deal
from jaxtrain.data.sources.listing import file_of_split
from jaxtrain.data.sources.source import Source, check_classes, digest, relabel, require_all
from jaxtrain.errors import UserError


@dataclass(frozen=True)
class Arrays:
    """The content of an npz file.

    Attributes:
      images: uint8 [n, h, w, c]; already transformed unless a transform is random.
      transforms: the host transforms, applied on loading or, if one is random, on fetching.
      labels: integers [n].
      classes: class names by label; () if the file has none.
      checksum: the checksum of the images.
    """

    images: np.ndarray
    transforms: Transforms
    labels: np.ndarray
    classes: tuple[str, ...]
    checksum: str


def open_npz(cfg, split: str, key: str, classes: tuple[str, ...]) -> Source:
    """Open a split of the arrays in `config.data.path`, which are always kept in memory.

    The path is FILE.npz, whose rows are assigned to splits by their row numbers, or a folder with a
    file SPLIT.npz per split. A file has `image`, uint8 [n, h, w, c] or [n, h, w] with 1 or 3
    channels; `label`, integers [n]; and optionally `classes`, the names of the labels. Without
    names, classes are named by their numbers, and a label means the same class in every split.

    Args, Raises: As in `folder.open_folder`.
    """
    path = os.path.expanduser(cfg.path)
    whole = not os.path.isdir(path)
    file = path if whole else file_of_split(path, split, key, ('.npz',))
    try:
        stamp = os.stat(file)
    except OSError as error:
        raise UserError(
            f"config.data.path: {file} cannot be read ({error.strerror}); for source='npz' give "
            'an npz file, or a folder with one per split'
        ) from error
    arrays = _load(file, (stamp.st_mtime_ns, stamp.st_size), image_settings(cfg, split))
    transforms = arrays.transforms
    labels, classes = _labels(arrays, classes, file)
    rows = np.arange(len(labels))
    if whole:
        rows = deal(cfg, [str(row) for row in rows], split, key)
        labels = labels[rows]
        if split == cfg.train:
            require_all(labels.tolist(), classes, key, split)

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        images = arrays.images[rows[indices]]
        if transforms.random:  # otherwise they were transformed on loading
            images = transforms.batch(images, numbers)
        return {'image': images, 'label': labels[indices]}

    names = [f'{arrays.checksum}/{row}' for row in rows]
    checksum = digest(names, (classes[label] for label in labels))
    features = classified_image(*transforms.shape)
    random = bool(transforms.random)
    return Source(
        fetch, len(rows), features, 'image', classes, checksum, labels=labels, random=random
    )


@lru_cache(maxsize=8)
def _load(file: str, stamp: tuple[int, int], settings: ImageSettings) -> Arrays:
    # Cached: the splits of one file, and the seeds and arms of a comparison, share their data.
    del stamp  # (modification time, size): a changed file is loaded again
    if not zipfile.is_zipfile(file):
        raise UserError(f'{file} is not an npz file, or a broken one; write it with numpy.savez')
    try:
        with np.load(file, allow_pickle=False) as data:
            arrays = {n: data[n] for n in ('image', 'label', 'classes') if n in data.files}
            names = data.files
        with zipfile.ZipFile(file) as archive:
            checksum = f'{archive.getinfo("image.npy").CRC:08x}' if 'image' in arrays else ''
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f'{file} is a broken npz file ({error}); write it again with numpy.savez'
        ) from error
    except ValueError as error:  # raised for an array of objects
        raise UserError(
            f'{file} holds an array of objects ({error}); give image and label as arrays of '
            'numbers, and classes as one of strings'
        ) from error
    for name in ('image', 'label'):
        if name not in arrays:
            raise UserError(f'{file} has no {name!r}; it has {", ".join(names) or "nothing"}')
    _check(file, arrays)
    images = arrays['image'].reshape(*arrays['image'].shape[:3], -1)
    size = settings.size or images.shape[1:3]
    transforms = make_transforms(settings, (*size, images.shape[3]))
    if settings.size and not transforms.random:
        images = transforms.batch(images)
    return Arrays(images, transforms, arrays['label'], _names(arrays), checksum)


def _check(file: str, arrays: dict[str, np.ndarray]) -> None:
    """Raise UserError unless the arrays have the types and shapes documented in `open_npz`."""
    images, labels = arrays['image'], arrays['label']
    if images.dtype != np.uint8:
        raise UserError(f'{file}: image is {images.dtype}; give uint8, 0 to 255')
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)) or not images.size:
        raise UserError(
            f'{file}: image has the shape {images.shape}; give [examples, height, width] or '
            '[examples, height, width, channels] with 1 or 3 channels'
        )
    if labels.dtype.kind not in 'iu' or labels.ndim != 1:
        raise UserError(
            f'{file}: label is {labels.dtype} of shape {labels.shape}; give integers [examples]'
        )
    if len(labels) != len(images):
        raise UserError(f'{file}: {len(images)} images but {len(labels)} labels; give one for each')
    names = arrays.get('classes')
    if names is not None and (
        names.dtype.kind != 'U' or names.ndim != 1 or len(set(names.tolist())) < len(names)
    ):
        raise UserError(
            f'{file}: classes is {names.dtype} of shape {names.shape}; give distinct strings '
            '[classes]'
        )
    if labels.min() < 0 or (names is not None and labels.max() >= len(names)):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        room = f'0 to {len(names) - 1}, as classes has' if names is not None else '0 or more'
        raise UserError(f'{file}: label has {wrong}; give {room}')


def _names(arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    return tuple(arrays['classes'].tolist()) if 'classes' in arrays else ()


def _labels(
    arrays: Arrays, classes: tuple[str, ...], file: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels, int32 [n], that refer to the classes of the run, and those classes."""
    count = int(arrays.labels.max()) + 1
    if not classes:
        classes = arrays.classes or _numbers(arrays.labels, file)
        check_classes(classes, file)
        return arrays.labels.astype(np.int32), classes
    if not arrays.classes:
        if count > len(classes):
            raise UserError(
                f'{file}: label has {count - 1}; the run trains on {len(classes)} classes, 0 to '
                f'{len(classes) - 1}'
            )
        return arrays.labels.astype(np.int32), classes
    labels = relabel(arrays.classes, classes, file)
    order = np.array([labels[name] for name in arrays.classes], np.int32)
    return order[arrays.labels], classes


def _numbers(labels: np.ndarray, file: str) -> tuple[str, ...]:
    """Return class names for a file without any: the labels as strings."""
    present = np.unique(labels)
    if present[-1] != len(present) - 1:
        missing = int(np.argmax(present != np.arange(len(present))))
        raise UserError(
            f'{file}: label goes up to {present[-1]}, but no example has {missing}; number the '
            'classes from 0 without gaps, or name them all in an array called classes'
        )
    return tuple(map(str, present.tolist()))
