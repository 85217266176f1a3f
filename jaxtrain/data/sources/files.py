"""Sources of image files, which a folder or a manifest lists."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxtrain.data.features import classified_image
from jaxtrain.data.images.decode import BadImage
from jaxtrain.data.images.transforms import (
    Transforms,
    each,
    image_settings,
    make_transforms,
    read_image,
)
from jaxtrain.data.sources.source import Source, digest
from jaxtrain.errors import UserError

CHUNK = 64  # the number of files that a thread decodes per task
THREADS = min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Files:
    """The image files of one split, hashable.

    Attributes:
      names: the name of each file, relative to the data set.
      paths: the path of each file.
      labels: indices into `classes`.
      classes: class names by label.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def take(self, indices: Sequence[int] | np.ndarray) -> 'Files':
        return Files(
            tuple(self.names[i] for i in indices),
            tuple(self.paths[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            self.classes,
        )


def file_source(cfg, files: Files, split: str) -> Source:
    """Return a source of RGB images, kept in memory if they take at most `memory_mib`.

    Args:
      cfg: `config.data`; its on_bad_image, exif, memory_mib and image settings are used.
      files: the files of the split.
      split: the name of the split; images with random crops in training are not kept in memory.

    Raises:
      UserError: If there is no size. If images are kept or on_bad_image='skip', also if a file
        (or every file of a class) cannot be read; otherwise `fetch` raises it for such a file.
    """
    skip = cfg.choose('on_bad_image', ('error', 'skip')) == 'skip'
    settings = image_settings(cfg, split)
    if not settings.size:
        raise UserError(
            'config.data.image_size: image files may differ in size; set it to (height, width), '
            'such as (224, 224), to resize them'
        )
    height, width = settings.size
    transforms = make_transforms(settings, (height, width, 3), cfg.exif)
    return _open(files, transforms, skip, cfg.memory_mib)


@lru_cache(maxsize=8)
def _open(files: Files, transforms: Transforms, skip: bool, memory_mib: int) -> Source:
    # Cached: the seeds and arms of a comparison share their data.
    size = len(files.paths) * int(np.prod(transforms.shape))
    keeps = not transforms.random and size <= memory_mib * 2**20
    kept, readable = _read_all(files.paths, transforms, keeps, skip)
    rows = np.flatnonzero(readable)
    skipped = tuple(files.paths[i] for i in np.flatnonzero(~readable))
    if skipped:
        files = _require_every_class(files, files.take(rows), skipped)
    labels = np.array(files.labels, np.int32)

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        if kept is not None:
            return {'image': kept[rows[indices]], 'label': labels[indices]}
        pairs = zip(indices, each(numbers, len(indices)), strict=True)
        images = [_read(files.paths[i], transforms, number) for i, number in pairs]
        return {'image': np.stack(images), 'label': labels[indices]}

    checksum = digest(files.names, (files.classes[label] for label in files.labels))
    return Source(
        fetch, len(labels), classified_image(*transforms.shape), 'image', files.classes, checksum,
        skipped, labels, random=bool(transforms.random),
    )  # fmt: skip


def _read(path: str, transforms: Transforms, number: int | None = None) -> np.ndarray:
    """Read the image in a file; raise UserError if it cannot be read."""
    try:
        return read_image(path, transforms, number)
    except BadImage as error:
        raise UserError(
            f"{error}, or skip such files with config.data.on_bad_image='skip'"
        ) from error


def _read_all(
    paths: Sequence[str], transforms: Transforms, keeps: bool, skip: bool
) -> tuple[np.ndarray | None, np.ndarray]:
    """Return (all images if they are kept, bool [paths]: whether each is readable or unchecked)."""
    kept = np.empty((len(paths), *transforms.shape), np.uint8) if keeps else None
    readable = np.ones(len(paths), bool)

    def read(index: int) -> None:
        try:
            image = (read_image if skip else _read)(paths[index], transforms)
        except BadImage:  # `_read` raises UserError instead
            readable[index] = False
            return
        if kept is not None:
            kept[index] = image

    if keeps or skip:
        _for_all(read, len(paths))
    return kept, readable


def _for_all(function: Callable[[int], None], count: int) -> None:
    """Call a function on 0..count-1 in threads; decoding releases Python's global lock."""

    def chunk(start: int) -> None:
        for index in range(start, min(start + CHUNK, count)):
            function(index)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(chunk, range(0, count, CHUNK)):
            pass  # iterating re-raises the first error in the order of the files


def _require_every_class(files: Files, readable: Files, skipped: tuple[str, ...]) -> Files:
    """Return the readable files; raise UserError if a class has lost all of its files."""
    lost = sorted(set(files.labels) - set(readable.labels))
    if not readable.paths:
        raise UserError(
            f'{skipped[0]} cannot be read, and neither can any other of {len(skipped)} images; '
            'check config.data.path'
        )
    if lost:
        name = files.classes[lost[0]]
        raise UserError(
            f'class {name!r}: none of its images can be read, for instance {skipped[0]}; '
            'replace them, or remove the class'
        )
    return readable
