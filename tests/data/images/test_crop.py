"""Tests of random crops on the host: the choice of the part, and its pixels."""

import csv
import io

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits, load_sample_images

from jaxtrain.config import Config, base
from jaxtrain.data.images import decode as images
from jaxtrain.data.images.crop import random_region
from jaxtrain.data.images.decode import BadImage, decode_part
from jaxtrain.data.images.resize import stretch
from jaxtrain.data.sources.open import open_source
from jaxtrain.errors import UserError
from jaxtrain.weights.bundle import resolve
from tests.support.inputs import decode

PHOTO = load_sample_images().images[0]  # 427 x 640
# An image of the same size whose colours encode the position.
PLACES = np.stack(
    [*(x / (side - 1) * 255 for x, side in zip(np.indices((427, 640)), (427, 640), strict=True)),
     np.full((427, 640), 99)], -1
).round().astype(np.uint8)  # fmt: skip
NUMBERS = np.random.default_rng(0).integers(0, 2**64, 20, np.uint64)


def encoded(pixels: np.ndarray, kind: str = 'JPEG', orientation: int = 1) -> bytes:
    image, file = Image.fromarray(pixels), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(file, kind, exif=exif, **({'quality': 95} if kind == 'JPEG' else {}))
    return file.getvalue()


def part(pixels: np.ndarray, box: tuple, size: tuple) -> np.ndarray:
    """Return the expected result: crop, then resize by area if it shrinks, otherwise bilinear."""
    top, left, height, width = box
    piece = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    shrinks = height > size[0] or width > size[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(piece, size[::-1], interpolation=method)


def test_regions_have_the_specified_distributions_of_area_aspect_and_position():
    height, width = 3000, 2900
    boxes = np.array([random_region((0.05, 0.4), n)(height, width) for n in range(2000)])
    top, left, rows, columns = boxes.T
    assert (boxes[:, 2:] > 0).all() and (boxes[:, :2] >= 0).all()
    assert (top + rows <= height).all() and (left + columns <= width).all()
    shares, aspects = rows * columns / height / width, np.log(columns / rows)
    assert stats.kstest(shares, stats.uniform(0.05, 0.35).cdf).pvalue > 0.01
    assert stats.kstest(aspects, stats.uniform(np.log(3 / 4), 2 * np.log(4 / 3)).cdf).pvalue > 0.01
    for place, room in ((top, height - rows), (left, width - columns)):
        assert stats.kstest(place / room, stats.uniform().cdf).pvalue > 0.01
    assert abs(np.corrcoef(top / (height - rows), left / (width - columns))[0, 1]) < 0.1


def test_the_last_row_and_column_are_as_likely_as_the_first():
    boxes = [random_region((0.25, 0.25), number)(8, 8) for number in range(800)]
    places = np.array([box[:2] for box in boxes if box[2:] == (4, 4)])
    for axis in (0, 1):
        counts = np.bincount(places[:, axis], minlength=5)
        assert len(counts) == 5 and stats.chisquare(counts).pvalue > 0.01, counts


@pytest.mark.parametrize(
    'size, box',
    [((9, 900), (0, 444, 9, 12)), ((900, 9), (444, 0, 12, 9)), ((1, 1), (0, 0, 1, 1))],
)
def test_if_no_region_fits_it_is_the_largest_in_the_centre(size, box):
    assert {random_region((0.9, 1.0), number)(*size) for number in range(9)} == {box}


def test_a_region_depends_on_its_number_alone():
    first, second = random_region((0.1, 1.0), 5), random_region((0.1, 1.0), 6)
    assert first(200, 300) == first(200, 300) == random_region((0.1, 1.0), np.uint64(5))(200, 300)
    assert first(200, 300) != second(200, 300)


def decoded_part(data: bytes, shape: tuple, region, upright: bool = False) -> np.ndarray:
    return stretch(decode_part(data, shape, region, upright), shape[:2]).reshape(shape)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('box', [(10, 20, 200, 300), (200, 330, 90, 61), (0, 0, 427, 640)])
def test_part_of_an_image_at_its_full_scale(kind, box):
    data, size = encoded(PHOTO, kind), (223, 224)
    whole = decode(data, PHOTO.shape)
    result = decoded_part(data, (*size, 3), lambda *_: box)
    np.testing.assert_array_equal(result, part(whole, box, size))
    grey = decoded_part(data, (*size, 1), lambda *_: box)
    np.testing.assert_array_equal(
        grey[..., 0], part(decode(data, (*PHOTO.shape[:2], 1))[..., 0], box, size)
    )


@pytest.mark.parametrize(
    'box, size, scale',
    [
        ((0, 0, 427, 640), (50, 51), 8),
        ((3, 5, 401, 633), (100, 100), 4),
        ((100, 301, 300, 333), (150, 150), 2),
        ((100, 301, 299, 333), (150, 150), 1),
        ((426, 639, 1, 1), (1, 1), 1),
    ],
)
@pytest.mark.parametrize('orientation', range(1, 9))
def test_jpeg_is_decoded_at_the_scale_that_the_region_needs(
    box, size, scale, orientation, monkeypatch
):
    """The scale is the smallest that covers the size; position and orientation are kept."""
    data = encoded(PLACES, orientation=orientation)
    upright = decode(data, _turned(orientation), upright=True)
    decoded, rgb = [], images._rgb
    monkeypatch.setattr(images, '_rgb', lambda image: decoded.append(image.size) or rgb(image))
    seen = []
    if orientation >= 5:  # the same box in the stored image has its axes swapped
        box = (box[1], box[0], box[3], box[2])

    def region(*whole):
        seen.append(whole)
        return box

    result = decoded_part(data, (*size, 3), region, upright=True)
    assert seen == [upright.shape[:2]]
    assert decoded == [(-(-640 // scale), -(-427 // scale))]
    expected = part(upright, box, size).astype(int)
    # One level spans two or three pixels, and JPEG is off by one or two levels.
    assert np.abs(result - expected).max() <= 4


def _turned(orientation: int) -> tuple[int, int, int]:
    height, width, channels = PHOTO.shape
    return (width, height, channels) if orientation >= 5 else (height, width, channels)


@pytest.mark.parametrize('size', [(50, 60), (200, 200)])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_broken_image(size, kind):
    data = encoded(PHOTO, kind)
    with pytest.raises(BadImage):
        decoded_part(data[: len(data) * 2 // 3], (*size, 3), lambda *_: (0, 0, 427, 640))


def opened(split='train', limit=0, classes=(), **changes):
    cfg = Config(base().to_dict()).replace(**{f'data__{k}': v for k, v in changes.items()})
    return open_source(resolve(cfg, None).data, split, f'config.data.{split}', limit, classes)


@pytest.fixture(scope='module')
def pets(tmp_path_factory):
    """The same 16 images of two classes as a folder, a manifest and arrays."""
    root = tmp_path_factory.mktemp('pets')
    pixels = np.stack([PHOTO[y : y + 80, x : x + 90] for y in (0, 99, 200, 300)
                       for x in (0, 150, 300, 500)])  # fmt: skip
    labels = np.arange(16) % 2
    for split in ('train', 'val'):
        rows = []
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            path = root / 'folder' / split / 'ab'[label] / f'{number:02}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image, 'PNG'))
            rows.append((path, 'ab'[label]))
        (root / 'manifest').mkdir(exist_ok=True)
        with open(root / 'manifest' / f'{split}.csv', 'w', newline='') as file:
            csv.writer(file).writerows([('path', 'label'), *rows])
        (root / 'npz').mkdir(exist_ok=True)
        np.savez(root / 'npz' / f'{split}.npz', image=pixels, label=labels, classes=['a', 'b'])
    return root


def settings(pets, kind: str) -> dict:
    if kind == 'tfds':
        return {'name': 'digits', 'image_size': (6, 7)}
    return {'source': kind, 'path': str(pets / kind), 'image_size': (40, 41)}


@pytest.mark.parametrize('kind', ['tfds', 'folder', 'manifest', 'npz'])
def test_every_source_crops_in_training_only(pets, kind):
    plain = settings(pets, kind)
    cropped = {**plain, 'random_crop': (0.2, 0.9)}
    train, whole = opened(**cropped), opened(**{**plain, 'image_size': _full(kind)})
    order = np.random.default_rng(1).permutation(16)
    rows = train.fetch(order, NUMBERS[:16])
    originals = whole.fetch(order)
    np.testing.assert_array_equal(rows['label'], originals['label'])
    assert rows['image'].dtype == np.uint8 and rows['image'].shape == (16, *train.shape)
    for result, image, number in zip(rows['image'], originals['image'], NUMBERS, strict=False):
        box = random_region((0.2, 0.9), number)(*image.shape[:2])
        expected = part(image, box, plain['image_size']).reshape(result.shape)
        np.testing.assert_array_equal(result, expected)
    # Without numbers there is no crop, and evaluation never crops.
    for split, numbers in (('train', None), ('val', None), ('val', NUMBERS[:16])):
        one, other = opened(split, **cropped), opened(split, **plain)
        assert one.features == other.features and one.digest == other.digest
        np.testing.assert_array_equal(
            one.fetch(order, numbers)['image'], other.fetch(order, numbers)['image']
        )


def _full(kind: str) -> tuple[int, int]:
    return load_digits().images.shape[1:] if kind == 'tfds' else (80, 90)


def test_limited_and_relabelled_sources_crop_too(pets):
    plain = {**settings(pets, 'tfds'), 'random_crop': (0.5, 1.0)}
    whole, names = opened(**plain), tuple('9876543210')
    some = opened(limit=2, classes=names, **plain)
    first = np.flatnonzero(whole.fetch(np.arange(len(whole)))['label'] == 3)[:2]
    labels = some.fetch(np.arange(20))['label']
    rows = some.fetch(np.flatnonzero(labels == names.index('3')), NUMBERS[:2])
    np.testing.assert_array_equal(rows['image'], whole.fetch(first, NUMBERS[:2])['image'])
    np.testing.assert_array_equal(rows['label'], names.index('3'))


@pytest.mark.parametrize('shares', [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (0.5,), (-0.1, 0.5)])
def test_wrong_shares_are_refused(shares):
    with pytest.raises(UserError, match=r'config.data.random_crop=\(.* must be the least and the'):
        opened(name='digits', image_size=(8, 8), random_crop=shares)


@pytest.mark.parametrize('kind', ['tfds', 'folder', 'manifest', 'npz'])
def test_cropping_requires_a_size(pets, kind):
    with pytest.raises(UserError, match='config.data.image_size'):
        opened(**{**settings(pets, kind), 'image_size': (), 'random_crop': (0.5, 1.0)})
