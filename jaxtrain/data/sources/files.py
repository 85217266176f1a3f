"""Sources of image files, however they were found: by folder or by manifest."""

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

CHUNK = 64  # files that a thread decodes at a time
THREADS = min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Files:
    """Image files of one split, hashable.

    Attributes:
      names: what each is called, relative to the data set.
      paths: where each lies.
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
    """A source of RGB images, kept in memory if they take at most `memory_mib`.

    Args:
      cfg: `config.data`; reads on_bad_image, exif, memory_mib and what `image_settings` reads.
      files: what to read.
      split: the split that they are of; in training a random part may be taken of each, and then
        they are not kept.

    Raises:
      UserError: no size; or, if the images are kept or on_bad_image='skip', a file that cannot be
        read, or a class of which no file can. Else `fetch` raises it for a file that cannot be.
    """
    skip = cfg.choose('on_bad_image', ('error', 'skip')) == 'skip'
    settings = image_settings(cfg, split)
    if not settings.size:
        raise UserError(
            'config.data.image_size: image files may differ in size; give (height, width) to '
            'resize them to, such as (224, 224)'
        )
    height, width = settings.size
    transforms = make_transforms(settings, (height, width, 3), cfg.exif)
    return _open(files, transforms, skip, cfg.memory_mib)


@lru_cache(maxsize=8)
def _open(files: Files, transforms: Transforms, skip: bool, memory_mib: int) -> Source:
    # Cached: the seeds and arms of a comparison share their data.
    size = len(files.paths) * int(np.prod(transforms.shape))
    keeps = not transforms.random and size <= memory_mib * 2**20
    kept, good = _look_through(files.paths, transforms, keeps, skip)
    rows = np.flatnonzero(good)
    skipped = tuple(files.paths[i] for i in np.flatnonzero(~good))
    if skipped:
        files = _require_some(files, files.take(rows), skipped)
    labels = np.array(files.labels, np.int32)

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        if kept is not None:
            return {'image': kept[rows[indices]], 'label': labels[indices]}
        pairs = zip(indices, each(numbers, len(indices)), strict=True)
        images = [_read(files.paths[i], transforms, number) for i, number in pairs]
        return {'image': np.stack(images), 'label': labels[indices]}

    marked = digest(files.names, (files.classes[label] for label in files.labels))
    return Source(
        fetch, len(labels), classified_image(*transforms.shape), 'image', files.classes, marked,
        skipped, labels,
    )  # fmt: skip


def _read(path: str, transforms: Transforms, number: int | None = None) -> np.ndarray:
    """The image in a file. UserError if it cannot be read."""
    try:
        return read_image(path, transforms, number)
    except BadImage as error:
        raise UserError(
            f"{error}, or leave such files out with config.data.on_bad_image='skip'"
        ) from error


def _look_through(
    paths: Sequence[str], transforms: Transforms, keeps: bool, skip: bool
) -> tuple[np.ndarray | None, np.ndarray]:
    """(all images if they are kept, bool [paths]: which of them are not to be skipped)."""
    kept = np.empty((len(paths), *transforms.shape), np.uint8) if keeps else None
    good = np.ones(len(paths), bool)

    def look(index: int) -> None:
        try:
            image = (read_image if skip else _read)(paths[index], transforms)
        except BadImage:  # only where it is to be skipped
            good[index] = False
            return
        if kept is not None:
            kept[index] = image

    if keeps or skip:
        _for_all(look, len(paths))
    return kept, good


def _for_all(look: Callable[[int], None], count: int) -> None:
    """Calls `look` on 0..count in threads: decoding lets go of Python's lock."""

    def chunk(start: int) -> None:
        for index in range(start, min(start + CHUNK, count)):
            look(index)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(chunk, range(0, count, CHUNK)):
            pass  # raises what a chunk raised, in the order of the files


def _require_some(files: Files, left: Files, skipped: tuple[str, ...]) -> Files:
    """`left`, or UserError if nothing is left of a class that there was."""
    gone = sorted(set(files.labels) - set(left.labels))
    if not left.paths:
        raise UserError(
            f'{skipped[0]} cannot be read, and none of the {len(skipped)} images can; '
            'check config.data.path'
        )
    if gone:
        name = files.classes[gone[0]]
        raise UserError(
            f'class {name!r}: none of its images can be read, for instance {skipped[0]}; '
            'replace them, or remove the class'
        )
    return left
