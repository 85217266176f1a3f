"""Data sets of TFDS that are prepared without TensorFlow: MNIST, Fashion-MNIST, CIFAR-10 and -100.

(ImageNet is in imagenet.py; `OFFICIAL` below has them all.) Each class is TFDS's own builder but
for the reading of the archives, for which TFDS calls TensorFlow. Name, version, features, labels,
ids, keys (hence the order on disk) and checksums are those of TFDS, and so are the pixels; the PNG
around them comes from another encoder. What is prepared here is read by plain
`tfds.builder('mnist')`.

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


# Beside the classes below stand TFDS's, whose types are not known.
_Beside: Any = object


class _Idx(_Beside):
    """Reads the archives of the MNIST family: two gzipped IDX files for each split."""

    quiet = False  # True: no progress bar, on a terminal either

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


class _Binary(_Beside):
    """Reads the archives of the CIFAR family: a tar of files of labels and pixels, row by row."""

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


# `url_infos` looks for checksums beside the file that a class is in, hence the last lines.


class MNIST(_Idx, mnist.MNIST, skip_registration=True):  # type: ignore[call-arg]
    url_infos = mnist.MNIST.url_infos


class FashionMNIST(_Idx, mnist.FashionMNIST, skip_registration=True):  # type: ignore[call-arg]
    url_infos = mnist.FashionMNIST.url_infos


class Cifar10(_Binary, cifar.Cifar10, skip_registration=True):  # type: ignore[call-arg]
    url_infos = cifar.Cifar10.url_infos


class Cifar100(_Binary, cifar.Cifar100, skip_registration=True):  # type: ignore[call-arg]
    url_infos = cifar.Cifar100.url_infos


# What of TFDS can be prepared here: name -> class.
OFFICIAL: dict[str, type[tfds.core.DatasetBuilder]] = {
    cls.name: cls for cls in (MNIST, FashionMNIST, Cifar10, Cifar100, Imagenet2012)
}


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of bytes: uint8, of the shape that its header tells."""
    with gzip.open(path) as file:
        data = file.read()
    ndim = data[3]
    shape = np.frombuffer(data, '>i4', ndim, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def read_tar(path: Path, prefix: str) -> dict[str, bytes]:
    """Reads the files of a gzipped tar that lie under `prefix`: name without it -> content."""
    with tarfile.open(path, 'r:gz') as tar:
        return {
            member.name.removeprefix(prefix): file.read()
            for member in tar
            if member.isfile() and member.name.startswith(prefix)
            if (file := tar.extractfile(member))
        }


def _png(image: np.ndarray) -> bytes:
    """Encodes uint8 of shape (height, width), grey, or (height, width, 3), RGB."""
    if image.ndim == 3:
        image = image[..., ::-1]  # OpenCV thinks in BGR
    return cv2.imencode('.png', image)[1].tobytes()
