"""Writes tfds_digests.json: digests of the data that TFDS with TensorFlow makes of the surrogates.

    pip install tensorflow tensorflow-datasets==4.9.10 array-record importlib_resources pillow
    python tests/golden/make_tfds_digests.py

TFDS's own builders prepare the archives of tests/support/surrogates.py. Only the checksums, and
MNIST's numbers of examples, are replaced. imagenet2012.npz holds the images of ImageNet's archive
('NAME'), and those that the builder converts ('NAME:made').
"""

import io
import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import mnist

sys.path.insert(0, str(Path(__file__).parents[1]))
import surrogates


def prepare(name: str, folder: Path) -> tfds.core.DatasetBuilder:
    """Prepares a data set from archives in TFDS's folder for manual downloads."""
    official = tfds.builder_cls(name)
    surrogates.write(name, folder / 'archives')
    patch = {'url_infos': surrogates.url_infos(official, folder / 'archives'), 'name': name}
    # The patch is in a subclass: FashionMNIST would inherit a patch of MNIST itself.
    builder = types.new_class(
        'Patched', (official,), {'skip_registration': True}, lambda body: body.update(patch)
    )(data_dir=str(folder))
    builder.download_and_prepare(
        file_format='array_record',
        download_config=tfds.download.DownloadConfig(
            manual_dir=str(folder / 'archives'), try_download_gcs=False
        ),
    )
    return builder


def describe(builder: tfds.core.DatasetBuilder) -> dict[str, object]:
    """The digests of all splits, and the metadata."""
    skip = {'image': tfds.decode.SkipDecoding()}
    features = builder.info.features
    return {
        'full_name': builder.info.full_name,
        'names': {key: features[key].names for key in features if key.endswith('label')},
        'splits': {
            split: surrogates.digest(
                builder.as_data_source(split, decoders=skip),
                lambda data: tf.io.decode_image(data).numpy(),
            )
            for split in sorted(builder.info.splits)
        },
    }


def special_images() -> dict[str, bytes]:
    """The images of `surrogates.SPECIAL` by name, and 'plain', an ordinary JPEG."""
    rng = np.random.RandomState(0)
    ramp = np.linspace(0, 255, 33 * 26 * 4).reshape(33, 26, 4)  # not multiples of a block
    pixels = np.clip(ramp[:, :, rng.permutation(4)] + rng.normal(0, 40, ramp.shape), 0, 255)
    pixels = np.where(np.arange(26)[:, None] < 13, pixels, 255 - pixels[::-1]).astype(np.uint8)
    adobe = _encode(Image.fromarray(pixels, 'CMYK'), 'JPEG')
    at = adobe.index(b'Adobe')  # in a segment of two bytes of marker, two of length, and content
    length = int.from_bytes(adobe[at - 2 : at], 'big')
    files = (
        adobe,
        adobe[: at - 4] + adobe[at - 2 + length :],  # without the marker
        adobe[: at + 11] + b'\2' + adobe[at + 12 :],  # the last byte distinguishes YCCK from CMYK
        _encode(Image.fromarray(pixels, 'RGBA'), 'PNG'),
    )
    plain = _encode(Image.fromarray(pixels, 'RGBA').convert('RGB'), 'JPEG')
    return {**dict(zip(surrogates.SPECIAL, files, strict=True)), 'plain': plain}


def _encode(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def imagenet(folder: Path) -> dict[str, object]:
    """Writes imagenet2012.npz, and describes the data that TFDS makes of its images."""
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in special_images().items()}
    np.savez_compressed(surrogates.IMAGENET, **arrays)
    surrogates.write_imagenet(folder / 'archives')
    builder = tfds.builder('imagenet2012', data_dir=str(folder))
    builder.download_and_prepare(
        file_format='array_record',
        download_config=tfds.download.DownloadConfig(
            manual_dir=str(folder / 'archives'), try_download_gcs=False
        ),
    )
    skip = {'image': tfds.decode.SkipDecoding()}
    sources = {s: builder.as_data_source(s, decoders=skip) for s in builder.info.splits}
    for row in sources['train']:
        if (name := row['file_name'].decode()) in surrogates.SPECIAL:
            arrays[f'{name}:made'] = np.frombuffer(row['image'], np.uint8)
    np.savez_compressed(surrogates.IMAGENET, **arrays)
    return {
        'full_name': builder.info.full_name,
        'splits': {s: surrogates.describe_imagenet(sources[s]) for s in sorted(sources)},
    }


def main() -> None:
    mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = surrogates.TRAIN, surrogates.TEST
    with tempfile.TemporaryDirectory() as folder:
        made = {name: describe(prepare(name, Path(folder, name))) for name in surrogates.NAMES}
        made['imagenet2012'] = imagenet(Path(folder, 'imagenet2012'))
    made['made_with'] = {'tensorflow': tf.__version__, 'tensorflow_datasets': tfds.__version__}
    path = Path(__file__).with_name('tfds_digests.json')
    path.write_text(json.dumps(made, indent=1, sort_keys=True) + '\n')


if __name__ == '__main__':
    main()
