"""ImageNet (ILSVRC 2012) of TFDS, prepared from the official archives without TensorFlow.

The class is TFDS's own builder `imagenet2012` but for the reading of the archives and of 23 images,
for which TFDS calls TensorFlow. Name, version, features, labels, keys (hence the order on disk) and
checksums are those of TFDS, and all images are the bytes of the archive but for those 23: 22 of
CMYK and a PNG become RGB and JPEG, as TFDS has them do. What is prepared here is read by plain
`tfds.builder('imagenet2012')`.

Archives, three tars: of 1000 tars of training images, a synset each; of validation images; of test
images. https://image-net.org/challenges/LSVRC/2012

What a user does: register at https://image-net.org/download-images, put ILSVRC2012_img_train.tar
and ILSVRC2012_img_val.tar into DATA_DIR/downloads/manual/imagenet2012, and leave as much room again
(155 GB) beside them. With the test tar there too, its images become a split, without labels: what
is evaluated is 'validation'. The tars are read once for their checksums and once for their images,
which are never unpacked; afterwards they may be removed.
"""

import io
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.extractor import iter_archive

from jaxtrain.data.datasets.download import hand_put, manual_dir, track
from jaxtrain.errors import UserError

TEST = 'ILSVRC2012_img_test.tar'  # TFDS has no checksum of it, and its images have the label -1
_LABELS = 'datasets/imagenet2012/validation_labels.txt'

_Builder: Any = tfds.builder_cls('imagenet2012')
_theirs = sys.modules[_Builder.__module__]


class Imagenet2012(_Builder, skip_registration=True):  # type: ignore[call-arg]
    """TFDS's builder of `imagenet2012`."""

    name = 'imagenet2012'
    url_infos = _Builder.url_infos
    quiet = False  # True: no progress bar, on a terminal either

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing to download
        train, validation = hand_put(self, list(self.url_infos), 'https://image-net.org')
        _check_room(self)
        labels = validation_labels(validation)
        splits = {
            'train': self._generate_examples(self._files(train, 'train', 1000)),
            'validation': self._generate_examples(
                self._files(validation, 'validation', len(labels)), validation_labels=labels
            ),
        }
        test = manual_dir(self) / TEST
        if test.exists():
            files = self._files(test, 'test', 100_000)
            splits['test'] = self._generate_examples(files, labels_exist=False)
        return splits

    def _files(self, path: Path, split: str, total: int) -> Iterator[tuple[str, io.BufferedIOBase]]:
        """Yields name and content of the files of a tar, in its order; read each before the next.

        Of an open file, unlike of a path, TFDS's reader does it without TensorFlow.
        """
        with path.open('rb') as file:
            members = iter_archive(file, tfds.download.ExtractMethod.TAR_STREAM)
            yield from track(members, total, f'{self.name} {split}', self.quiet)

    def _fix_image(self, image_fname: str, image: io.BufferedIOBase) -> io.BufferedIOBase:
        """Makes RGB JPEGs of the few training images that are not; called by `_Builder`."""
        if image_fname in {*_theirs.CMYK_IMAGES, *_theirs.PNG_IMAGES}:
            return io.BytesIO(rgb_jpeg(image.read()))
        return image


def _check_room(builder: Imagenet2012) -> None:
    """UserError unless the data set, as large as its archives, finds room.

    While it is sorted nothing is there twice: a bucket goes as soon as it has been read.
    """
    needed = sum(int(info.size) for info in builder.url_infos.values())
    free = shutil.disk_usage(builder.data_dir_root).free
    if free < needed:
        raise UserError(
            f'config.data.dir: {builder.name} takes {needed / 1e9:.0f} GB, and '
            f'{builder.data_dir_root} has {free / 1e9:.0f} GB left; make room there, or name '
            'another folder'
        )


def validation_labels(path: Path) -> dict[str, str]:
    """Returns the synset of each image in the archive of validation images.

    TFDS's list of them has no names: it is in the order of the images' names, which is not the one
    in the archive.
    """
    labels = tfds.core.tfds_path(_LABELS).read_text().split()
    with tarfile.open(path, 'r:') as tar:
        return dict(zip(sorted(tar.getnames()), labels, strict=False))


def rgb_jpeg(data: bytes) -> bytes:
    """Returns an image as an RGB JPEG of quality 100, encoded as TensorFlow does it.

    CMYK becomes RGB without a colour profile, and transparency is dropped, also as TensorFlow does
    it. But its decoder takes the fast inverse DCT, which Pillow does not offer: pixels of CMYK
    images differ by up to 3 of 255 levels before they are encoded again.
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.mode == 'CMYK':
        light = np.asarray(image).astype(np.int32)  # what each ink leaves of white
        if 'adobe' in image.info:  # Adobe stores that, and Pillow inverts all, Adobe's or not
            light = 255 - light
        image = Image.fromarray((light[..., :3] * light[..., 3:] // 255).astype(np.uint8))
    file = io.BytesIO()
    image.convert('RGB').save(file, 'JPEG', quality=100, subsampling='4:2:0', dpi=(300, 300))
    return file.getvalue()
