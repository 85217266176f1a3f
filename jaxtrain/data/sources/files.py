"""Sources of image files, however they were found: by folder or by manifest."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxtrain.data.images.crop import Shares, make_random_crop, random_region
from jaxtrain.data.images.decode import BadImage, Fit, Region, make_fit, read
from jaxtrain.data.sources.examples import Source, digest
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


def file_source(cfg, files: Files, size: tuple[int, ...], train: bool) -> Source:
    """A source of RGB images, kept in memory if they take at most `memory_mib`.

    Args:
      cfg: `config.data`; reads on_bad_image, exif, crop, interpolation and memory_mib.
      files: what to read.
      size: (height, width) to resize to.
      train: whether they are trained on, and so cropped as random_crop says (and not kept).

    Raises:
      UserError: no size; or, if the images are kept or on_bad_image='skip', a file that cannot be
        read, or a class of which no file can. Else `fetch` raises it for a file that cannot be.
    """
    skip = cfg.choose('on_bad_image', ('error', 'skip')) == 'skip'
    upright, memory_mib = cfg.exif, cfg.memory_mib
    if not size:
        raise UserError(
            'config.data.image_size: image files may differ in size; give (height, width) to '
            'resize them to, such as (224, 224)'
        )
    shares = make_random_crop(cfg, size) if train else None
    return _open(files, (*size, 3), upright, make_fit(cfg), skip, memory_mib, shares)


@lru_cache(maxsize=8)
def _open(
    files: Files,
    shape: tuple[int, int, int],
    upright: bool,
    fit: Fit,
    skip: bool,
    memory_mib: int,
    shares: Shares,
) -> Source:
    # Cached: the seeds and arms of a comparison share their data.
    fits = not shares and len(files.paths) * int(np.prod(shape)) <= memory_mib * 2**20
    images = np.empty((len(files.paths), *shape), np.uint8) if fits else None
    good = np.ones(len(files.paths), bool)

    def look(index: int) -> None:
        image, good[index] = _read(files.paths[index], shape, upright, fit, skip=skip)
        if images is not None and good[index]:
            images[index] = image

    if fits or skip:
        _for_all(look, len(files.paths))
    rows = np.flatnonzero(good)
    skipped = tuple(files.paths[i] for i in np.flatnonzero(~good))
    if skipped:
        files = _require_some(files, files.take(rows), skipped)
    labels = np.array(files.labels, np.int32)

    def read_all(indices: np.ndarray, regions: Sequence[Region | None]) -> dict[str, np.ndarray]:
        pairs = zip(indices, regions, strict=True)
        found = [_read(files.paths[i], shape, upright, fit, region)[0] for i, region in pairs]
        return {'image': np.stack(found), 'label': labels[indices]}

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        if images is not None:
            return {'image': images[rows[indices]], 'label': labels[indices]}
        return read_all(indices, [None] * len(indices))

    def crop(indices: np.ndarray, numbers: np.ndarray) -> dict[str, np.ndarray]:
        assert shares  # without them the source has no `crop`
        return read_all(indices, [random_region(shares, number) for number in numbers])

    marked = digest(files.names, (files.classes[label] for label in files.labels))
    return Source(
        fetch, len(labels), shape, files.classes, marked, skipped, labels,
        crop=crop if shares else None,
    )  # fmt: skip


def _read(
    path: str,
    shape: tuple[int, int, int],
    upright: bool,
    fit: Fit,
    region: Region | None = None,
    skip: bool = False,
) -> tuple[np.ndarray, bool]:
    """The image, and whether it could be read; UserError if not and that is not to be skipped."""
    try:
        return read(path, shape, upright, fit, region), True
    except BadImage as error:
        if skip:
            return np.empty(0, np.uint8), False
        raise UserError(
            f"{error}, or leave such files out with config.data.on_bad_image='skip'"
        ) from error


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
