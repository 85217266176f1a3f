"""Tests of the chain of host transforms: their order, and random ones where a number is given."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from jaxtrain.data.images.crop import random_region
from jaxtrain.data.images.resize import Fit, resize
from jaxtrain.data.images.transforms import (
    Decode,
    ImageSettings,
    RandomResizedCrop,
    Resize,
    Transforms,
    make_transforms,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)


def half(image, number):
    return image // 2


def add(image, number):
    return image + np.uint8(3 if number is None else number)


@pytest.mark.parametrize(
    ('chain', 'number', 'expected'),
    [
        ((), None, PIXELS),
        ((half, add), None, PIXELS // 2 + 3),
        ((add, half), None, (PIXELS + np.uint8(3)) // 2),
        ((half, add), 7, PIXELS // 2 + 7),
    ],
)
def test_transforms_are_applied_in_order(chain, number, expected):
    result = Transforms(PIXELS.shape, chain)(PIXELS, number)
    np.testing.assert_array_equal(result, expected)


def test_random_transforms_replace_the_fixed_ones_where_a_number_is_given():
    chain = Transforms(PIXELS.shape, (half,), (add, half))
    np.testing.assert_array_equal(chain(PIXELS), PIXELS // 2)
    expected = [(PIXELS + np.uint8(n)) // 2 for n in (4, 9)]
    np.testing.assert_array_equal(chain.batch([PIXELS] * 2, np.array([4, 9])), expected)


@pytest.mark.parametrize('encoded', [False, True])
def test_pixels_and_files_give_the_same_result(encoded):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, 'PNG')
    settings = ImageSettings((6, 5), Fit(0.5, 'bicubic'), (0.3, 0.8))
    chain = make_transforms(settings, (6, 5, 3))
    result = chain.batch([file.getvalue() if encoded else PIXELS] * 2, np.array([4, 9]))
    for image, number in zip(result, (4, 9), strict=True):
        top, left, height, width = random_region((0.3, 0.8), number)(12, 9)
        part = PIXELS[top : top + height, left : left + width]
        np.testing.assert_array_equal(image, resize(part, (6, 5)))
    whole = chain(file.getvalue() if encoded else PIXELS)
    np.testing.assert_array_equal(whole, resize(PIXELS, (6, 5), Fit(0.5, 'bicubic')))


def test_a_chain_is_plain_data():
    """Equality and hashes make caches work across arms, and pickling sends chains to workers."""
    settings = ImageSettings((6, 5), Fit(0.5), (0.3, 0.8))
    chain = make_transforms(settings, (6, 5, 3), upright=True)
    assert chain == make_transforms(settings, (6, 5, 3), upright=True)
    assert chain != make_transforms(settings, (6, 5, 3)) and len({chain, chain}) == 1
    assert pickle.loads(pickle.dumps(chain)) == chain
    assert chain.fixed == (Decode(3, True), Resize((6, 5), Fit(0.5)))
    assert chain.random == (RandomResizedCrop((6, 5, 3), (0.3, 0.8), True),)
