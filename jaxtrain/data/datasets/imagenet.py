"""ImageNet (ILSVRC 2012) of TFDS, prepared from the official archives without TensorFlow.

The class below is TFDS's builder `imagenet2012`, except that it reads the archives and 23 of the
images without TensorFlow. The name, version, features, labels, keys (hence the order on disk) and
checksums are those of TFDS. Each image keeps the bytes it has in the archive, except for those 23:
22 CMYK JPEGs and a PNG become RGB JPEGs, as in TFDS. The prepared data set can be read with plain
`tfds.builder('imagenet2012')`.

There are three archives (https://image-net.org/challenges/LSVRC/2012): a tar of 1000 tars of
training images, one per synset; a tar of validation images; and a tar of test images.

To prepare the data set, a user registers at https://image-net.org/download-images, puts
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into DATA_DIR/downloads/manual/imagenet2012,
and leaves the same amount of space (155 GB) free beside them. If the test tar is there too, its
images become a split without labels; evaluation uses 'validation'. The tars are read once for their
checksums and once for their images, without being unpacked, and may be removed afterwards.
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

from jaxtrain.data.datasets.download import manual_archives, manual_dir, track
from jaxtrain.errors import UserError

TEST = 'ILSVRC2012_img_test.tar'  # has no checksum in TFDS; its images have the label -1
_LABELS = 'datasets/imagenet2012/validation_labels.txt'

_Builder: Any = tfds.builder_cls('imagenet2012')
_tfds_module = sys.modules[_Builder.__module__]


class Imagenet2012(_Builder, skip_registration=True):  # type: ignore[call-arg]
    """TFDS's builder of `imagenet2012`, without TensorFlow."""

    name = 'imagenet2012'
    url_infos = _Builder.url_infos
    quiet = False  # True shows no progress bar, even on a terminal

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing to download
        train, validation = manual_archives(self, list(self.url_infos), 'https://image-net.org')
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
        """Yield the name and content of each file of a tar, in its order.

        Each content must be read before the next file is requested. TFDS's reader is given an open
        file, because it opens a path with TensorFlow.
        """
        with path.open('rb') as file:
            members = iter_archive(file, tfds.download.ExtractMethod.TAR_STREAM)
            yield from track(members, total, f'{self.name} {split}', self.quiet)

    def _fix_image(self, image_fname: str, image: io.BufferedIOBase) -> io.BufferedIOBase:
        """Convert the few training images that are not RGB JPEGs; called by `_Builder`."""
        if image_fname in {*_tfds_module.CMYK_IMAGES, *_tfds_module.PNG_IMAGES}:
            return io.BytesIO(rgb_jpeg(image.read()))
        return image


def _check_room(builder: Imagenet2012) -> None:
    """Raise UserError unless there is space for the data set, which is as large as its archives.

    Sorting needs no extra space, because a bucket is removed as soon as it has been read.
    """
    needed = sum(int(info.size) for info in builder.url_infos.values())
    free = shutil.disk_usage(builder.data_dir_root).free
    if free < needed:
        raise UserError(
            f'config.data.dir: {builder.name} needs {needed / 1e9:.0f} GB, but '
            f'{builder.data_dir_root} has {free / 1e9:.0f} GB left; free some space there, or set '
            'another folder'
        )


def validation_labels(path: Path) -> dict[str, str]:
    """Return the synset of each image in the archive of validation images.

    TFDS's list of synsets has no image names: it follows the sorted names of the images, which is
    not their order in the archive.
    """
    labels = tfds.core.tfds_path(_LABELS).read_text().split()
    with tarfile.open(path, 'r:') as tar:
        return dict(zip(sorted(tar.getnames()), labels, strict=False))


def rgb_jpeg(data: bytes) -> bytes:
    """Return an image as an RGB JPEG of quality 100, with TensorFlow's encoder settings.

    CMYK is converted to RGB without a colour profile, and transparency is dropped, as in
    TensorFlow. TensorFlow's decoder uses the fast inverse DCT, which Pillow does not offer, so
    decoded pixels of CMYK images differ by up to 3 of 255 levels.
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.mode == 'CMYK':
        light = np.asarray(image).astype(np.int32)  # the share of white that each ink leaves
        if 'adobe' in image.info:  # Adobe stores this value, but Pillow inverts every CMYK JPEG
            light = 255 - light
        image = Image.fromarray((light[..., :3] * light[..., 3:] // 255).astype(np.uint8))
    file = io.BytesIO()
    image.convert('RGB').save(file, 'JPEG', quality=100, subsampling='4:2:0', dpi=(300, 300))
    return file.getvalue()
