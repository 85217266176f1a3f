"""Tests of reading splits by index, against the digits of scikit-learn."""

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxtrain.config import Config, base
from jaxtrain.data.images import transforms
from jaxtrain.data.images.decode import decode
from jaxtrain.data.images.resize import Fit, resize
from jaxtrain.data.sources.open import open_source
from jaxtrain.errors import UserError
from jaxtrain.weights.bundle import resolve

DIGITS = load_digits()
# scikit-learn's images as the data set stores them, to identify examples by their pixels.
PIXELS = np.rint(DIGITS.images * (255 / 16)).astype(np.uint8)


def source(split='train', limit=0, key='config.data.train', classes=(), **changes):
    cfg = Config(base().to_dict()).replace(
        **{'data__name': 'digits', **{f'data__{name}': v for name, v in changes.items()}}
    )
    cfg = resolve(cfg, None)
    return open_source(cfg.data, split, key, limit, classes)


def everything(opened) -> dict[str, np.ndarray]:
    return opened.fetch(np.arange(len(opened)))


def same(one, other) -> bool:
    return all((one[name] == other[name]).all() for name in ('image', 'label'))


def fault(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        source(*arguments, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_every_digit_of_scikit_learn_is_in_one_split():
    splits = [everything(source(split)) for split in ('train', 'val', 'test')]
    assert [len(split['label']) for split in splits] == [897, 300, 600]
    stored = [
        (label, image.tobytes())
        for split in splits
        for image, label in zip(split['image'], split['label'], strict=True)
    ]
    expected = [(y, x.tobytes()) for x, y in zip(PIXELS, DIGITS.target, strict=True)]
    assert sorted(stored) == sorted(expected)


def test_a_source_declares_its_size_shape_and_classes():
    opened = source()
    assert (len(opened), opened.shape) == (897, (8, 8, 1))
    assert opened.classes == tuple('0123456789')
    rows = opened.fetch(np.array([5, 5, 2]))
    assert (rows['image'].shape, rows['image'].dtype) == ((3, 8, 8, 1), np.uint8)
    assert (rows['label'].shape, rows['label'].dtype) == ((3,), np.int32)


def test_examples_are_addressed_by_index():
    opened, order = source(), np.array([700, 3, 896, 3])
    whole, some = everything(opened), opened.fetch(order)
    assert same(some, {name: rows[order] for name, rows in whole.items()})


@pytest.mark.parametrize('limit', [0, 4])
def test_in_memory_and_batch_by_batch_are_the_same(limit):
    memory, disk = source(limit=limit), source(limit=limit, memory_mib=0)
    assert memory.fetch is not disk.fetch
    order = np.random.default_rng(0).permutation(len(memory))
    assert same(memory.fetch(order), disk.fetch(order))


def test_only_images_that_are_not_in_memory_are_decoded_again(monkeypatch):
    memory, disk = source(), source(memory_mib=0)
    monkeypatch.setattr(transforms, 'decode', lambda *_: np.full((8, 8), 7, np.uint8))
    assert (disk.fetch(np.arange(3))['image'] == 7).all()
    assert (memory.fetch(np.arange(3))['image'] != 7).any()


def test_a_limit_keeps_the_first_examples_of_each_class_in_order():
    whole, few = everything(source()), everything(source(limit=7))
    kept = np.sort(np.concatenate([np.flatnonzero(whole['label'] == c)[:7] for c in range(10)]))
    assert same(few, {name: rows[kept] for name, rows in whole.items()})
    assert len(few['label']) == 70


def test_a_smaller_limit_keeps_a_subset_of_a_larger_one():
    small, large = ({x.tobytes() for x in everything(source(limit=n))['image']} for n in (3, 10))
    assert small < large


def test_slices_of_a_split():
    whole = everything(source())
    first, second = everything(source('train[:50%]')), everything(source('train[50%:]'))
    assert abs(len(first['label']) - len(second['label'])) <= 1
    joined = {name: np.concatenate([first[name], second[name]]) for name in whole}
    assert same(joined, whole)
    ten = everything(source('train[5:15]'))
    assert same(ten, {name: rows[5:15] for name, rows in whole.items()})


@pytest.mark.parametrize(
    ('size', 'method'),
    [((20, 20), cv2.INTER_LINEAR), ((16, 8), cv2.INTER_LINEAR), ((5, 3), cv2.INTER_AREA)],
)
def test_images_are_resized(size, method):
    opened = source(image_size=size)
    assert opened.shape == (*size, 1)
    result, plain = opened.fetch(np.arange(9)), source().fetch(np.arange(9))
    for large, small in zip(result['image'], plain['image'], strict=True):
        expected = cv2.resize(small[..., 0], size[::-1], interpolation=method)
        np.testing.assert_array_equal(large[..., 0], expected)


def test_halving_the_size_averages_blocks():
    plain = source().fetch(np.arange(9))['image'].astype(float)
    blocks = plain.reshape(9, 4, 2, 4, 2, 1).mean((2, 4))
    result = source(image_size=(4, 4)).fetch(np.arange(9))['image']
    np.testing.assert_allclose(result, blocks, atol=0.51)


@pytest.mark.parametrize('memory_mib', [0, 2048])
def test_labels_refer_to_the_classes_of_the_run(memory_mib):
    classes = (*'97531', 'x', *'02468')
    plain, opened = source(memory_mib=memory_mib), source(classes=classes, memory_mib=memory_mib)
    assert opened.classes == classes
    names = [classes[label] for label in everything(opened)['label']]
    assert names == [str(label) for label in everything(plain)['label']]
    limited = source(classes=tuple('9876543210'), limit=3, memory_mib=memory_mib)
    assert np.bincount(everything(limited)['label']).tolist() == [3] * 10


def test_a_class_unknown_to_the_run_is_refused():
    message = fault(classes=tuple('012345678'))
    assert message.startswith("config.data.name='digits': class '9' is not one of the 9 classes")


def test_a_tfds_data_set_has_no_digest_or_skipped_files():
    memory, disk = source(), source(memory_mib=0)
    assert (memory.digest, memory.skipped, disk.labels) == ('', (), None)
    np.testing.assert_array_equal(memory.labels, everything(disk)['label'])


def test_a_broken_image_of_a_tfds_data_set_is_reported(monkeypatch):
    opened = source(memory_mib=0)
    monkeypatch.setattr(transforms, 'decode', lambda data, *_: decode(data[:50], *_))
    with pytest.raises(UserError, match=r"config.data.name='digits': an image of .* cannot be rea"):
        opened.fetch(np.arange(3))


@pytest.mark.parametrize(
    ('split', 'words'),
    [
        ('trian', ["config.data.val='trian'", "'train'", 'test, train, val']),
        ('trian[:5]', ["config.data.val='trian[:5]'", "'train'"]),
        ('train[:5', ["config.data.val='train[:5' is not valid split notation", "'train[:80%]'"]),
        ('train[a:b]', ["config.data.val='train[a:b]' is not valid split"]),
        ('train[5:5]', ["config.data.val='train[5:5]' holds no examples"]),
        ('train[:0%]', ["config.data.val='train[:0%]' holds no examples"]),
    ],
)
def test_invalid_splits_are_refused(split, words):
    message = fault(split, key='config.data.val')
    assert all(word in message for word in words), message


def test_splits_can_be_joined():
    assert len(source('train+val')) == 897 + 300


def test_the_error_of_a_limit_larger_than_the_data_names_the_rarest_class():
    counts = np.bincount(everything(source())['label'])
    message = fault(limit=95)
    assert message.startswith('config.data.limit=95 is larger than the data: class ')
    assert f"class '{counts.argmin()}' has {counts.min()} examples in 'digits' 'train'" in message


def test_the_largest_possible_limit_is_accepted():
    counts = np.bincount(everything(source())['label'])
    assert len(source(limit=int(counts.min()))) == 10 * counts.min()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'name': ''}, 'config.data.name is empty; give the name of a data set'),
        ({'image_size': (8,)}, 'config.data.image_size=(8,) must be (height, width)'),
        ({'image_size': (8, 8, 1)}, 'config.data.image_size=(8, 8, 1) must be'),
        ({'image_size': (0, 8)}, 'config.data.image_size=(0, 8) must be'),
        ({'limit': -1}, 'config.data.limit=-1 must be 0 (all) or more'),
    ],
)
def test_invalid_settings_are_refused(changes, words):
    limit = changes.pop('limit', 0)
    assert words in fault(limit=limit, **changes)


@pytest.mark.parametrize('memory_mib', [0, 2048])
def test_images_are_resized_as_configured(memory_mib):
    plain = everything(source())['image'][:5]
    for crop, interpolation in ((0.0, 'auto'), (0.5, 'bicubic')):
        changes = {'image_size': (6, 6), 'crop': crop, 'interpolation': interpolation}
        opened = source(memory_mib=memory_mib, **changes)
        fit = Fit(crop, interpolation)
        expected = [resize(image, (6, 6), fit).reshape(6, 6, 1) for image in plain]
        np.testing.assert_array_equal(opened.fetch(np.arange(5))['image'], expected)
