"""Tests of data sets that are not available: sizes, shapes and classes without examples."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar, mnist

from jaxtrain.config import Config, base
from jaxtrain.data.datasets.official import OFFICIAL
from jaxtrain.data.datasets.prepare import builder, prepare
from jaxtrain.data.sources import absent
from jaxtrain.data.sources.absent import SIZES, absent_source, is_here
from jaxtrain.data.sources.open import open_source
from jaxtrain.errors import UserError
from jaxtrain.weights.bundle import resolve
from tests.support import surrogates

DIGITS = {'train': 897, 'val': 300, 'test': 600}


def config(**changes):
    keys = {f'data__{name}': value for name, value in changes.items()}
    return resolve(Config(base().to_dict()).replace(**keys), None).data


def fault(opens, *arguments, **changes) -> str:
    with pytest.raises(UserError) as caught:
        opens(config(**changes), *arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def digits_known(monkeypatch):
    """Digits, which are always available, get a known size, so that both sources are comparable."""
    monkeypatch.setitem(absent.SIZES, 'digits', DIGITS)


def test_sizes_are_those_of_tfds_and_the_papers(tmp_path):
    assert set(SIZES) == set(OFFICIAL)
    for name in ('mnist', 'fashion_mnist'):
        assert SIZES[name] == {'train': mnist._TRAIN_EXAMPLES, 'test': mnist._TEST_EXAMPLES}
    for cls in (cifar.Cifar10, cifar.Cifar100):
        description = cls(data_dir=str(tmp_path)).info.description.replace('\n', ' ')
        assert (
            'There are 50000 training images and 10000 test images' in description
            or '500 training images and 100 testing images per class' in description
        )
        assert SIZES[cls.name] == {'train': 50_000, 'test': 10_000}
    labels = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt').read_text().split()
    assert SIZES['imagenet2012'] == {'train': 1_281_167, 'validation': len(labels)}


@pytest.mark.parametrize(
    'split',
    ['train', 'train[:99%]', 'train[99%:]', 'train[33%:66%]', 'train[-10:]', 'all']
    + ['train+test[:50%]', 'val[10:20]'],
)
def test_a_split_has_the_size_of_the_available_one(split, digits_known):
    cfg = config(name='digits')
    here = open_source(cfg, split, 'config.data.train')
    assert absent_source(cfg, split, 'config.data.train').size == len(here)


@pytest.mark.parametrize('limit, size', [(0, ()), (3, ()), (0, (12, 10))])
def test_a_source_declares_what_the_available_one_declares(limit, size, digits_known):
    cfg = config(name='digits', image_size=size)
    here = open_source(cfg, 'train', 'config.data.train', limit)
    missing = absent_source(cfg, 'train', 'config.data.train', limit)
    assert (missing.size, missing.shape, missing.classes) == (here.size, here.shape, here.classes)
    assert missing.features == here.features


@pytest.mark.parametrize(
    'split, changes',
    [
        ('trian', {}),
        ('train[:x]', {}),
        ('train[:0]', {}),
        ('train[:5000]', {}),
        ('train', {'image_size': (8,)}),
        ('train', {'image_size': (8, 0)}),
        ('train', {'name': 'no_such_thing'}),
    ],
)
def test_errors_are_those_of_the_available_source(split, changes, digits_known):
    arguments = (split, 'config.data.train')
    changes = {'name': 'digits', **changes}
    message = fault(absent_source, *arguments, **changes)
    assert message == fault(open_source, *arguments, **changes)


def test_imagenet_on_a_machine_without_it(tmp_path):
    cfg = config(name='imagenet2012', dir=str(tmp_path), image_size=(224, 224))
    train = absent_source(cfg, 'train[:99%]', 'config.data.train')
    assert (train.size, train.shape) == (round(0.99 * 1_281_167), (224, 224, 3))
    assert train.classes[:2] == ('n01440764', 'n01443537') and len(train.classes) == 1000
    assert absent_source(cfg, 'validation', 'config.data.val', classes=('a', 'b')).classes == (
        'a',
        'b',
    )
    with pytest.raises(UserError, match="'imagenet2012': its examples are not on this machine"):
        train.fetch(np.arange(2))
    assert not list(tmp_path.iterdir())


def test_images_of_different_sizes_require_a_size(tmp_path):
    message = fault(absent_source, 'train', '', name='imagenet2012', dir=str(tmp_path))
    assert message == (
        "config.data.image_size: the images of 'imagenet2012' differ in size; give (height, width)"
    )


def test_files_cannot_be_counted_before_they_are_written(tmp_path):
    message = fault(absent_source, 'train[:2shard]', 'config.data.train', name='mnist')
    assert message.startswith("config.data.train='train[:2shard]' counts files")


def test_a_limit_above_the_number_of_examples_per_class_is_refused(tmp_path):
    message = fault(absent_source, 'train', '', 5001, name='cifar10', dir=str(tmp_path))
    assert message.startswith('config.data.limit=5001 must be 0 (all) or at most 5000')


def test_a_data_set_of_unknown_size_must_be_prepared_first(tmp_path):
    message = fault(absent_source, 'train', '', name='svhn_cropped', dir=str(tmp_path))
    assert f'not prepared in {tmp_path}' in message and 'download_and_prepare' in message
    message = fault(absent_source, 'train', '', name='glyphs/greek', dir=str(tmp_path))
    assert 'the size of this data set is not known before it is prepared' in message


@pytest.mark.parametrize(
    'changes, expected',
    [
        ({'name': 'digits'}, True),
        ({'name': 'glyphs/greek:1.0.0'}, True),
        ({'source': 'folder', 'path': 'pets'}, True),
        ({'name': 'imagenet2012'}, False),
        ({'name': 'cifar10'}, False),
        ({'name': 'svhn_cropped'}, False),
        ({'name': 'no_such_thing'}, False),
    ],
)
def test_whether_data_is_available(changes, expected, tmp_path):
    assert is_here(config(dir=str(tmp_path), **changes)) is expected


def test_a_prepared_data_set_is_available(tmp_path, monkeypatch):
    folder = tmp_path / 'downloads/manual/mnist'
    surrogates.write('mnist', folder)
    monkeypatch.setattr(
        OFFICIAL['mnist'], 'url_infos', surrogates.url_infos(OFFICIAL['mnist'], folder)
    )
    cfg = config(name='mnist', dir=str(tmp_path))
    assert not is_here(cfg)
    prepare(builder('mnist', str(tmp_path)))
    assert is_here(cfg)
