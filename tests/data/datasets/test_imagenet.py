"""Tests of TFDS's imagenet2012, prepared without TensorFlow.

The archives are surrogates (tests/support/surrogates.py): official layout, few images. The results
of TFDS with TensorFlow are in golden/tfds_digests.json and golden/imagenet2012.npz.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle

from jaxtrain.config import Config, base
from jaxtrain.data.datasets import buckets
from jaxtrain.data.datasets.imagenet import Imagenet2012, rgb_jpeg
from jaxtrain.data.datasets.prepare import builder, prepare
from jaxtrain.data.sources.open import open_source
from jaxtrain.errors import UserError
from jaxtrain.weights.bundle import resolve
from tests.conftest import TINY
from tests.support import surrogates

GOLDEN = json.loads(Path(__file__).parents[2].joinpath('golden/tfds_digests.json').read_text())
OFFICIAL_INFOS = Imagenet2012.url_infos
MANUAL = 'downloads/manual/imagenet2012'
SKIP = {'image': tfds.decode.SkipDecoding()}


@pytest.fixture(scope='module')
def archives(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('archives')
    surrogates.write_imagenet(folder)
    return folder


@pytest.fixture
def data_dir(archives, tmp_path, monkeypatch) -> Path:
    """A data_dir with the surrogates as its archives, accepted as the official ones."""
    monkeypatch.setattr(Imagenet2012, 'url_infos', surrogates.url_infos(Imagenet2012, archives))
    shutil.copytree(archives, tmp_path / MANUAL)
    return tmp_path


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, archives) -> Path:
    folder = tmp_path_factory.mktemp('prepared')
    shutil.copytree(archives, folder / MANUAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Imagenet2012, 'url_infos', surrogates.url_infos(Imagenet2012, archives))
        prepare(builder('imagenet2012', str(folder)))
    return folder


def describe(data_dir: Path) -> dict[str, list]:
    dataset = tfds.builder('imagenet2012', data_dir=str(data_dir))  # TFDS's own class
    assert type(dataset).__module__.startswith('tensorflow_datasets.datasets.imagenet2012')
    return {
        split: surrogates.describe_imagenet(dataset.as_data_source(split, decoders=SKIP))
        for split in sorted(dataset.info.splits)
    }


def refusal(data_dir: Path) -> str:
    """Return the one-line error of preparing, which must leave no other files behind."""
    with pytest.raises(UserError) as caught:
        prepare(builder('imagenet2012', str(data_dir)))
    assert '\n' not in str(caught.value)
    assert not list(data_dir.rglob('incomplete*')) and not list(data_dir.rglob('*.array_record*'))
    return str(caught.value)


def test_keys_order_labels_and_bytes_are_those_of_tfds_with_tensorflow(prepared):
    dataset = tfds.builder('imagenet2012', data_dir=str(prepared))
    assert dataset.info.full_name == GOLDEN['imagenet2012']['full_name']
    assert describe(prepared) == GOLDEN['imagenet2012']['splits']
    assert list(dataset.info.splits) == ['train', 'validation', 'test']


def pixels(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ('JPEG', 'RGB')
    return np.asarray(image).astype(int)


@pytest.mark.parametrize('name', surrogates.SPECIAL)
def test_images_that_are_not_rgb_jpegs_are_converted_as_by_tensorflow(name, prepared):
    """The PNG matches to the byte; CMYK differs by up to 3 levels before it is encoded again."""
    dataset = tfds.builder('imagenet2012', data_dir=str(prepared))
    rows = dataset.as_data_source('train', decoders=SKIP)
    (result,) = (row['image'] for row in rows if row['file_name'].decode() == name)
    with np.load(surrogates.IMAGENET) as images:
        expected = images[f'{name}:made'].tobytes()
    if name == 'n02105855_2933.JPEG':
        assert result == expected
    difference = np.abs(pixels(result) - pixels(expected))
    assert difference.max() <= 8 and difference.mean() < 1
    assert pixels(expected).std() > 30  # the image has contrast, so that a difference would show


def test_cmyk_inks_of_known_strength_become_rgb():
    """One ink leaves half of the light, and black leaves half of that: a quarter."""
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 0], inks[..., 3] = 127, 127
    file = io.BytesIO()
    Image.fromarray(inks, 'CMYK').save(file, 'JPEG', quality=100)
    assert np.abs(pixels(rgb_jpeg(file.getvalue())) - (64, 128, 128)).max() <= 2


def test_a_split_larger_than_memory_is_sorted_in_files_to_the_same_order(data_dir, monkeypatch):
    used = []

    class Counted(buckets.Bucket):
        def del_file(self):
            used.append(len(self))
            super().del_file()

    monkeypatch.setattr(buckets, 'Bucket', Counted)
    monkeypatch.setattr(buckets, '_PENDING', 1)
    monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 5000)  # bytes, in place of one gigabyte
    original = shuffle._Bucket
    prepare(builder('imagenet2012', str(data_dir)))
    assert describe(data_dir) == GOLDEN['imagenet2012']['splits']
    assert sum(used) >= 11 and shuffle._Bucket is original
    assert not list(data_dir.rglob('bucket*'))


def test_without_the_test_archive_there_is_no_test_split(data_dir):
    (data_dir / MANUAL / 'ILSVRC2012_img_test.tar').unlink()
    prepare(builder('imagenet2012', str(data_dir)))
    expected = {**GOLDEN['imagenet2012']['splits']}
    del expected['test']
    assert describe(data_dir) == expected


def test_an_older_version_is_refused_and_not_replaced_by_another(data_dir):
    """TFDS only prepares the newest version."""
    with pytest.raises(UserError, match="another version can be prepared: 'imagenet2012:5.1.0'"):
        builder('imagenet2012:5.0.0', str(data_dir))


def test_missing_archives_are_named_with_their_source(data_dir, jaxtrain):
    for split in ('train', 'val'):
        (data_dir / MANUAL / f'ILSVRC2012_img_{split}.tar').unlink()
    both = 'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar cannot be downloaded'
    message = refusal(data_dir)
    assert both in message and 'https://image-net.org' in message
    assert message.endswith(f'put them into {data_dir / MANUAL}')

    outcome = jaxtrain(
        *('train', f'--config={TINY}', f'--workdir={data_dir}/run'),
        *('--config.data.name=imagenet2012', f'--config.data.dir={data_dir}'),
        *('--config.data.val=validation', '--config.data.image_size=(8, 8)'),
    )
    assert outcome.code == 2 and message in outcome.err


def test_unofficial_archives_are_refused(archives, tmp_path):
    """Nothing is patched: the expected sizes are those of TFDS."""
    assert sorted(int(info.size) for info in OFFICIAL_INFOS.values()) == [
        6_744_924_160,
        147_897_477_120,
    ]
    shutil.copytree(archives, tmp_path / MANUAL)
    message = refusal(tmp_path)
    path = tmp_path / MANUAL / 'ILSVRC2012_img_train.tar'
    assert f'{path} is damaged or not the official file: its size is' in message
    assert f'{path.stat().st_size}, not 147897477120; get it from https://image-net.org' in message


@pytest.mark.parametrize('archive', ['ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'])
def test_one_wrong_byte_is_detected(archive, data_dir):
    path = data_dir / MANUAL / archive
    data = bytearray(path.read_bytes())
    data[1500] ^= 1
    path.write_bytes(data)
    assert f'{path} is damaged or not the official file: its SHA-256 is' in refusal(data_dir)


def test_insufficient_disk_space_is_reported_beforehand(data_dir, monkeypatch):
    usage = shutil.disk_usage(data_dir)._replace(free=10_000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    message = refusal(data_dir)
    assert message.startswith('config.data.dir: imagenet2012 needs')
    assert f'{data_dir} has 0 GB left' in message


def test_the_prepared_data_set_opens_as_a_source(prepared):
    cfg = Config(base().to_dict()).replace(
        data__name='imagenet2012', data__dir=str(prepared), data__image_size=(16, 12)
    )
    opened = open_source(resolve(cfg, None).data, 'validation', 'config.data.val')
    assert (len(opened), opened.shape, len(opened.classes)) == (8, (16, 12, 3), 1000)
    labels = [label for _, label, _ in GOLDEN['imagenet2012']['splits']['validation']]
    rows = opened.fetch(np.arange(8))
    assert rows['label'].tolist() == labels
    assert rows['image'].std() > 20


def test_images_without_labels_are_not_evaluated(prepared):
    cfg = Config(base().to_dict()).replace(
        data__name='imagenet2012', data__dir=str(prepared), data__image_size=(16, 12)
    )
    for split in ('test', 'validation+test', 'test[1:]'):
        with pytest.raises(UserError) as caught:
            open_source(resolve(cfg, None).data, split, 'config.data.test')
        message = str(caught.value)
        assert message.startswith(f'config.data.test={split!r}: ') and "'imagenet2012'" in message
        assert 'no labels' in message and message.endswith('test, train, validation')


def test_plain_tfds_reads_it_without_jaxtrain_and_tensorflow(prepared):
    code = """
import sys
import tensorflow_datasets as tfds
rows = tfds.builder('imagenet2012', data_dir=sys.argv[1]).as_data_source('train')
print(len(rows), {(row['image'].shape, str(row['image'].dtype)) for row in rows})
print({'jaxtrain', 'tensorflow'} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, '-c', code, str(prepared)],
        env={**os.environ, 'PYTHONPATH': ''},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["11 {((33, 26, 3), 'uint8')}", 'set()'], done.stderr


def test_the_class_differs_from_the_one_of_tfds_only_in_reading():
    """A version of TFDS with other archives, versions or features must not go unnoticed."""
    parent = tfds.builder_cls('imagenet2012')
    assert issubclass(Imagenet2012, parent) and Imagenet2012 is not parent
    assert (Imagenet2012.VERSION, Imagenet2012.name) == (parent.VERSION, 'imagenet2012')
    assert parent.url_infos == OFFICIAL_INFOS
    assert Imagenet2012._generate_examples is parent._generate_examples
