"""Writes tfds_digests.json: what TFDS with TensorFlow makes of the surrogate archives.

    pip install tensorflow tensorflow-datasets==4.9.10 array-record importlib_resources
    python tests/golden/make_tfds_digests.py

TFDS's own builders prepare the archives of tests/surrogates.py. They are told the checksums of
these, and MNIST's are told how many examples there are; all else is as it comes.
"""

import json
import sys
import tempfile
import types
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import mnist

sys.path.insert(0, str(Path(__file__).parents[1]))
import surrogates


def prepare(name: str, folder: Path) -> tfds.core.DatasetBuilder:
    """Prepares one data set from archives that lie where TFDS looks for files put by hand."""
    official = tfds.builder_cls(name)
    surrogates.write(name, folder / 'archives')
    patch = {'url_infos': surrogates.url_infos(official, folder / 'archives'), 'name': name}
    # In a class of its own: were MNIST itself patched, FashionMNIST would inherit the patch.
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
    """Returns the digests of all splits, and what the metadata says."""
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


def main() -> None:
    mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = surrogates.TRAIN, surrogates.TEST
    with tempfile.TemporaryDirectory() as folder:
        made = {name: describe(prepare(name, Path(folder, name))) for name in surrogates.NAMES}
    made['made_with'] = {'tensorflow': tf.__version__, 'tensorflow_datasets': tfds.__version__}
    path = Path(__file__).with_name('tfds_digests.json')
    path.write_text(json.dumps(made, indent=1, sort_keys=True) + '\n')


if __name__ == '__main__':
    main()
