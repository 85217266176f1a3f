"""Tests of arrays in npz files, with assigned splits or one file per split."""

import hashlib

import cv2
import numpy as np
import pytest

from jaxtrain.data.images.resize import Fit, resize
from jaxtrain.data.sources.open import open_source
from jaxtrain.errors import UserError
from tests.data.sources.test_folder import config, unread

RNG = np.random.default_rng(0)
COUNT = 60
IMAGES = RNG.integers(0, 256, (COUNT, 6, 5, 3)).astype(np.uint8)
LABELS = np.arange(COUNT) % 3


def source(path, split='train', limit=0, classes=(), key='config.data.train', **changes):
    cfg = config(path, **{'source': 'npz', 'image_size': (), **changes})
    return open_source(cfg.data, split, key, limit, classes)


def fault(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        source(*arguments, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def save(path, image=IMAGES, label=LABELS, **more):
    arrays = {'image': image, 'label': label, **more}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def everything(opened) -> tuple[np.ndarray, np.ndarray]:
    rows = opened.fetch(np.arange(len(opened)))
    assert (rows['image'].dtype, rows['label'].dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(rows['label'], opened.labels)
    return rows['image'], rows['label']


def assert_rows(opened, rows):
    images, labels = everything(opened)
    np.testing.assert_array_equal(images, IMAGES[rows])
    np.testing.assert_array_equal(labels, LABELS[rows])


def test_a_file_for_each_split(tmp_path):
    save(tmp_path / 'train.npz', IMAGES[:40], LABELS[:40])
    save(tmp_path / 'val.npz', IMAGES[40:], LABELS[40:])
    assert_rows(source(tmp_path), slice(0, 40))
    assert_rows(source(tmp_path, 'val'), slice(40, 60))
    opened = source(tmp_path)
    assert (opened.classes, opened.shape, len(opened)) == (('0', '1', '2'), (6, 5, 3), 40)


def test_rows_are_assigned_to_splits_by_the_hash_of_their_number(tmp_path):
    file = save(tmp_path / 'all.npz')
    positions = np.array(
        [int(hashlib.sha256(f'3/{row}'.encode()).hexdigest()[:16], 16) for row in range(COUNT)]
    ) / float(16**16)
    shares = (('train', 0.6), ('val', 0.3))
    for split, low, high in (('train', 0, 0.6), ('val', 0.6, 0.9)):
        opened = source(file, split, split_seed=3, shares=shares)
        assert_rows(opened, np.flatnonzero((low <= positions) & (positions < high)))


@pytest.mark.parametrize(('shape', 'channels'), [((6, 5), 1), ((6, 5, 1), 1), ((6, 5, 3), 3)])
@pytest.mark.parametrize('size', [(), (3, 4), (12, 11)])
def test_shapes_and_sizes(shape, channels, size, tmp_path):
    images = RNG.integers(0, 256, (COUNT, *shape)).astype(np.uint8)
    save(tmp_path / 'train.npz', images)
    opened = source(tmp_path, image_size=size)
    expected = images
    if size:
        method = cv2.INTER_AREA if size == (3, 4) else cv2.INTER_LINEAR
        expected = np.stack([cv2.resize(x, size[::-1], interpolation=method) for x in images])
    assert opened.shape == (*(size or (6, 5)), channels)
    result, _ = everything(opened)
    np.testing.assert_array_equal(result, expected.reshape(result.shape))


def test_examples_are_addressed_by_index(tmp_path):
    opened, order = source(save(tmp_path / 'all.npz')), np.array([7, 3, 30, 3])
    images, labels = everything(opened)
    rows = opened.fetch(order)
    np.testing.assert_array_equal(rows['image'], images[order])
    np.testing.assert_array_equal(rows['label'], labels[order])


@pytest.mark.parametrize('kind', [np.uint8, np.int64, np.uint64])
def test_labels_of_any_integer_type(kind, tmp_path):
    save(tmp_path / 'train.npz', label=LABELS.astype(kind))
    assert_rows(source(tmp_path), slice(None))


def test_classes_have_names(tmp_path):
    save(tmp_path / 'train.npz', classes=np.array(['cat', 'dog', 'owl', 'unused']))
    assert source(tmp_path).classes == ('cat', 'dog', 'owl', 'unused')


def test_labels_refer_to_the_classes_of_the_run(tmp_path):
    """Labels match by name if the file has names, otherwise by number."""
    names = np.array(['owl', 'cat', 'dog'])
    save(tmp_path / 'val.npz', classes=names)
    save(tmp_path / 'test.npz')
    classes = ('cat', 'dog', 'emu', 'owl')
    val, test = (source(tmp_path, part, classes=classes) for part in ('val', 'test'))
    assert val.classes == test.classes == classes
    np.testing.assert_array_equal(np.array(classes)[everything(val)[1]], names[LABELS])
    assert_rows(test, slice(None))


def test_classes_unknown_to_the_run_are_refused(tmp_path):
    save(tmp_path / 'val.npz', classes=np.array(['owl', 'cat', 'dog']))
    save(tmp_path / 'test.npz')
    message = fault(tmp_path, 'val', classes=('owl', 'cats', 'dog'))
    assert "class 'cat' is not one of the 3 classes" in message and "mean 'cats'?" in message
    message = fault(tmp_path, 'test', classes=('a', 'b'))
    assert 'test.npz: label has 2; the run trains on 2 classes, 0 to 1' in message


def test_a_limit_keeps_the_first_examples_of_each_class(tmp_path):
    save(tmp_path / 'train.npz')
    assert_rows(source(tmp_path, limit=4), slice(0, 12))
    assert "limit=21 is larger than the data: class '0' has 20" in fault(tmp_path, limit=21)


def test_the_digest_changes_with_the_data(tmp_path):
    first = source(save(tmp_path / 'train.npz').parent).digest
    assert source(save(tmp_path / 'other.npz'), shares=(('train', 1.0),)).digest == first
    images, labels = IMAGES.copy(), LABELS.copy()
    images[5, 2, 2] ^= 1
    labels[5] += 1 - 3 * (labels[5] == 2)
    names = np.array(['0', '1', 'x'])
    changed = [
        source(save(tmp_path / 'train.npz', **change).parent).digest
        for change in ({'image': images}, {'label': labels}, {'classes': names})
    ]
    assert len({first, *changed}) == 4


def test_a_changed_file_is_read_again(tmp_path):
    assert_rows(source(save(tmp_path / 'train.npz').parent), slice(None))
    opened = source(save(tmp_path / 'train.npz', 255 - IMAGES[:50], LABELS[:50]).parent)
    np.testing.assert_array_equal(everything(opened)[0], 255 - IMAGES[:50])


NAMES = np.array(['a', 'b', 'c'])
OBJECTS = np.array([{}] * COUNT, object)


@pytest.mark.parametrize(
    ('arrays', 'words'),
    [
        ({'label': None, 'y': LABELS}, "has no 'label'; it has image, y"),
        ({'image': None, 'x': IMAGES}, "has no 'image'; it has label, x"),
        ({'image': IMAGES / 255}, 'image is float64; give uint8, 0 to 255'),
        ({'image': IMAGES.astype(np.int16)}, 'image is int16; give uint8'),
        ({'image': IMAGES.reshape(COUNT, -1)}, 'image has the shape (60, 90); give [examples, he'),
        ({'image': IMAGES[..., :2]}, 'image has the shape (60, 6, 5, 2); give'),
        ({'image': IMAGES.transpose(0, 3, 1, 2)}, 'image has the shape (60, 3, 6, 5); give'),
        ({'image': IMAGES[:0], 'label': LABELS[:0]}, 'image has the shape (0, 6, 5, 3); give'),
        ({'label': LABELS[:-1]}, '60 images but 59 labels; give one for each'),
        ({'label': LABELS.astype(float)}, 'label is float64 of shape (60,); give integers'),
        ({'label': np.eye(3, dtype=int)[LABELS]}, 'label is int64 of shape (60, 3); give integers'),
        ({'label': LABELS - 1}, 'label has -1; give 0 or more'),
        ({'label': LABELS + 1}, 'label goes up to 3, but no example has 0; number the classes'),
        ({'label': LABELS + (LABELS == 2) * 10**9}, 'no example has 2; number the classes from 0'),
        ({'label': LABELS * 0}, "has only the class '0'"),
        ({'classes': NAMES[:2]}, 'label has 2; give 0 to 1, as classes has'),
        ({'classes': np.arange(3)}, 'classes is int64 of shape (3,); give distinct strings'),
        ({'classes': NAMES[[0, 1, 1]]}, 'give distinct strings [classes]'),
        ({'label': OBJECTS}, 'holds an array of objects (Object arrays cannot be loaded'),
        ({'classes': np.array(['a', 'b', None])}, 'holds an array of objects'),
    ],
)
def test_invalid_arrays_are_refused(arrays, words, tmp_path):
    message = fault(save(tmp_path / 'train.npz', **arrays).parent)
    assert message.startswith(f'{tmp_path}/train.npz') and words in message, message


@pytest.mark.parametrize('share', [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(share, tmp_path):
    file = save(tmp_path / 'train.npz')
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert 'train.npz is not an npz file, or a broken one; write it with numpy.savez' in fault(
        tmp_path
    )


def test_one_wrong_byte_is_detected(tmp_path):
    file = save(tmp_path / 'train.npz')
    data = bytearray(file.read_bytes())
    data[1000] ^= 255
    file.write_bytes(data)
    assert 'train.npz is a broken npz file (Bad CRC-32 for file' in fault(tmp_path)


def test_an_array_outside_an_npz_file_is_refused(tmp_path):
    np.save(tmp_path / 'image.npy', IMAGES)
    assert 'image.npy is not an npz file' in fault(tmp_path / 'image.npy')


def test_a_missing_split_is_reported(tmp_path):
    save(tmp_path / 'valid.npz')
    message = fault(tmp_path, 'val', key='config.data.val')
    for part in ("config.data.val='val'", f'{tmp_path} has no val.npz', "'valid'"):
        assert part in message, message
    assert 'no.npz cannot be read (No such file or directory)' in fault(tmp_path / 'no.npz')


def test_a_class_without_training_examples_is_refused(tmp_path):
    labels = np.zeros(COUNT, int)
    for row in range(COUNT):  # until the one example of class 1 is assigned to another split
        labels[:] = 0
        labels[row] = 1
        file = save(tmp_path / f'{row}.npz', label=labels)
        if 1 not in source(file, 'x', classes=('0', '1'), shares=(('x', 0.8),)).labels:
            break
    message = fault(file)
    assert "config.data.train='train': none of the examples of class '1' falls into it" in message


def test_keys_without_effect_are_not_read(tmp_path):
    save(tmp_path / 'train.npz')
    always = {'name', 'dir', 'on_bad_image', 'exif', 'memory_mib'}
    cfg = config(tmp_path, source='npz', image_size=())
    assert unread(cfg) == always | {'shares', 'split_seed'}
    cfg = config(tmp_path / 'train.npz', source='npz', image_size=())
    assert unread(cfg) == always


def test_images_are_resized_as_configured(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 12, 3), np.uint8)
    np.savez(tmp_path / 'train.npz', image=images, label=np.array([0, 1, 0, 1]))
    for crop, interpolation in ((0.0, 'auto'), (0.5, 'bicubic')):
        opened = source(tmp_path, image_size=(8, 8), crop=crop, interpolation=interpolation)
        fit = Fit(crop, interpolation)
        expected = np.stack([resize(image, (8, 8), fit) for image in images])
        np.testing.assert_array_equal(opened.fetch(np.arange(4))['image'], expected)
