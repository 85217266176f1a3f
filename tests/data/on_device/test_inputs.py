"""Tests of the model inputs functions from a batch, in training and in evaluation."""

import jax
import numpy as np
import pytest

from jaxtrain.config import Config, base
from jaxtrain.data.on_device.inputs import Inputs, make_inputs
from jaxtrain.data.sources.source import Source
from jaxtrain.data.tokenizer import Tokenizer
from jaxtrain.errors import UserError
from jaxtrain.weights.bundle import resolve
from tests.support.inputs import image_source, window_source

BATCH = {
    'image': np.arange(6 * 8, dtype=np.uint8).reshape(6, 2, 2, 2),
    'label': np.array([0, 1, 2, 2, 1, 0], np.int32),
}
IMAGES = image_source(6, (2, 2, 2), ('a', 'b', 'c'))


def inputs(source: Source = IMAGES, **changes) -> Inputs:
    return make_inputs(resolve(Config(base().to_dict()).replace(**changes), None).data, source)


def test_inputs_are_normalised_per_channel():
    functions = inputs(data__mean=(0.25, 0.5), data__std=(0.5, 2.0))
    expected = (BATCH['image'] / 255 - np.array([0.25, 0.5])) / np.array([0.5, 2.0])
    trained, batch = functions.train(BATCH, jax.random.key(0))
    assert batch is BATCH
    for result in (functions.evaluate(BATCH), trained):
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_augmentation_is_for_training_only_and_precedes_normalisation():
    functions = inputs(data__augment=(('noise', 10.0),), data__std=(0.01,))
    plain = inputs(data__std=(0.01,)).evaluate(BATCH)
    np.testing.assert_array_equal(functions.evaluate(BATCH), plain)
    noise = (functions.train(BATCH, jax.random.key(0))[0] - plain) * 0.01 * 255
    assert 5 < float(noise.std()) < 15


def test_images_are_mixed_after_augmentation_and_before_normalisation():
    settings = {'data__augment': (('noise', 10.0),), 'data__mean': (0.1,), 'data__std': (0.5,)}
    key = jax.random.key(3)
    plain, _ = inputs(**settings).train(BATCH, key)
    mixed, batch = inputs(**settings, data__mixup=0.8).train(BATCH, key)
    share = np.asarray(batch['mix'])[:, None, None, None]
    np.testing.assert_allclose(mixed, share * plain + (1 - share) * np.roll(plain, 1, 0), atol=1e-5)
    np.testing.assert_array_equal(batch['mix_label'], np.roll(BATCH['label'], 1))
    assert 'mix' not in BATCH and np.abs(mixed - plain).max() > 0.1


def test_text_is_passed_through():
    batch = {'tokens': np.arange(12, dtype=np.int32).reshape(3, 4)}
    functions = inputs(window_source(3, 4, Tokenizer('', 5, -1, -1)))
    assert functions.train(batch, jax.random.key(0)) == (batch['tokens'], batch)
    assert functions.evaluate(batch) is batch['tokens']


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'data__mean': (0.1, 0.2, 0.3)}, 'config.data.mean=(0.1, 0.2, 0.3) must have one value'),
        ({'data__augment': (('flop',),)}, "config.data.augment: 'flop' is not known"),
        ({'data__mixup': -0.1}, 'config.data.mixup=-0.1 must be 0 (off) or more'),
        ({'data__cutmix': -1.0}, 'config.data.cutmix=-1.0 must be 0 (off) or more'),
    ],
)
def test_invalid_settings_are_refused(changes, words):
    with pytest.raises(UserError) as caught:
        inputs(**changes)
    assert words in str(caught.value)
