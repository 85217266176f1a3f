"""Data sets of TFDS that are prepared without TensorFlow: MNIST, Fashion-MNIST, CIFAR-10 and -100.

ImageNet is in imagenet.py; `OFFICIAL` below lists all of them. Each class is TFDS's builder, except
that it reads the archives without TensorFlow. The name, version, features, labels, ids, keys (hence
the order on disk), checksums and pixels are those of TFDS; only the PNG encoder differs. The
prepared data sets can be read with plain `tfds.builder('mnist')`.

Formats: http://yann.lecun.com/exdb/mnist/ and https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar, mnist

from jaxtrain.data.datasets.download import archives, track
from jaxtrain.data.datasets.imagenet import Imagenet2012

_IDX_FILES = {
    'train': ('train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz'),
    'test': ('t10k-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz'),
}


# A base class for mixins: the types of the TFDS builders that they are combined with are unknown.
_Mixin: Any = object


class _Idx(_Mixin):
    """A reader of the archives of the MNIST family: two gzipped IDX files for each split."""

    quiet = False  # True shows no progress bar, even on a terminal

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        urls = [urljoin(self.URL, name) for names in _IDX_FILES.values() for name in names]
        arrays = [read_idx(path) for path in archives(self, dl_manager, urls)]
        return {
            split: self._generate_examples(split, images, labels)
            for split, images, labels in zip(_IDX_FILES, arrays[::2], arrays[1::2], strict=True)
        }

    def _generate_examples(self, split: str, images, labels) -> Iterator[tuple[int, dict]]:
        title = f'{self.name} {split}'
        for row in track(range(len(images)), len(images), title, self.quiet):
            yield row, {'image': _png(images[row]), 'label': int(labels[row])}


class _Binary(_Mixin):
    """A reader of the archives of the CIFAR family: a tar of files with labels and pixels."""

    quiet = False

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        info = self._cifar_info
        (path,) = archives(self, dl_manager, [info.url])
        files = read_tar(path, info.prefix)
        for key, name in zip(info.label_keys, info.label_files, strict=True):
            self.info.features[key].names = [x for x in files[name].decode().split('\n') if x]
        splits = {'train': info.train_files, 'test': info.test_files}
        return {
            split: self._generate_examples(split, b''.join(files[name] for name in names))
            for split, names in splits.items()
        }

    def _generate_examples(self, split: str, data: bytes) -> Iterator[tuple[int, dict]]:
        keys = self._cifar_info.label_keys
        rows = np.frombuffer(data, np.uint8).reshape(-1, len(keys) + 3 * 32 * 32)
        title = f'{self.name} {split}'
        for index, row in enumerate(track(rows, len(rows), title, self.quiet)):
            labels = dict(zip(keys, row[: len(keys)].tolist(), strict=True))
            image = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
            yield index, {**labels, 'id': f'{split}_{index:05d}', 'image': _png(image)}


# `url_infos` looks for checksums in the folder of the file that defines a class, so each class
# below takes the value from its TFDS base.


class MNIST(_Idx, mnist.MNIST, skip_registration=True):  # type: ignore[call-arg]
    url_infos = mnist.MNIST.url_infos


class FashionMNIST(_Idx, mnist.FashionMNIST, skip_registration=True):  # type: ignore[call-arg]
    url_infos = mnist.FashionMNIST.url_infos


class Cifar10(_Binary, cifar.Cifar10, skip_registration=True):  # type: ignore[call-arg]
    url_infos = cifar.Cifar10.url_infos


class Cifar100(_Binary, cifar.Cifar100, skip_registration=True):  # type: ignore[call-arg]
    url_infos = cifar.Cifar100.url_infos


# The TFDS data sets that can be prepared without TensorFlow: name -> class.
OFFICIAL: dict[str, type[tfds.core.DatasetBuilder]] = {
    cls.name: cls for cls in (MNIST, FashionMNIST, Cifar10, Cifar100, Imagenet2012)
}


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of bytes: uint8 of the shape given in its header."""
    with gzip.open(path) as file:
        data = file.read()
    ndim = data[3]
    shape = np.frombuffer(data, '>i4', ndim, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def read_tar(path: Path, prefix: str) -> dict[str, bytes]:
    """Return the files under `prefix` in a gzipped tar: name without the prefix -> content."""
    with tarfile.open(path, 'r:gz') as tar:
        return {
            member.name.removeprefix(prefix): file.read()
            for member in tar
            if member.isfile() and member.name.startswith(prefix)
            if (file := tar.extractfile(member))
        }


def _png(image: np.ndarray) -> bytes:
    """Encode uint8 pixels of shape (height, width), grey, or (height, width, 3), RGB."""
    if image.ndim == 3:
        image = image[..., ::-1]  # OpenCV expects BGR
    return cv2.imencode('.png', image)[1].tobytes()
