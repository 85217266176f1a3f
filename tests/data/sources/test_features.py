"""Tests that every source returns the features that it declares."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from jaxtrain.config import Config, base
from jaxtrain.data.features import CLASS, IMAGE, NEXT_TOKENS, TOKENS, Feature
from jaxtrain.data.sources.open import SOURCES, input_feature, open_source
from jaxtrain.data.tokenizer import open_tokenizer
from jaxtrain.errors import UserError
from jaxtrain.models import check_inputs, make_model
from jaxtrain.step.state import abstract_inputs
from jaxtrain.weights.bundle import resolve

LENGTH = 6
COLOURED, GREY = (5, 4, 3), (5, 4, 1)
LABEL = Feature((), np.int32, CLASS)
TEXT = Feature((LENGTH,), np.int32, TOKENS)
DECLARED = {
    'tfds': {'image': Feature(GREY, np.uint8, IMAGE), 'label': LABEL},
    'folder': {'image': Feature(COLOURED, np.uint8, IMAGE), 'label': LABEL},
    'manifest': {'image': Feature(COLOURED, np.uint8, IMAGE), 'label': LABEL},
    'npz': {'image': Feature(GREY, np.uint8, IMAGE), 'label': LABEL},
    'text': {'tokens': TEXT, 'label': LABEL},
    'corpus': {'tokens': TEXT, 'targets': Feature((LENGTH,), np.int32, NEXT_TOKENS)},
}


@pytest.fixture(scope='module')
def data(tmp_path_factory, tokenizer):
    """A dict from each kind of source to its keys of `config.data`."""
    root, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 9, 7), np.uint8)
    rows = []
    for number, image in enumerate(images):
        path = root / 'folder' / 'train' / 'ab'[number % 2] / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        rows.append((path, 'ab'[number % 2], 'train'))
    for name, column, lines in (
        ('manifest', 'path', rows),
        ('text', 'text', [('some words', 'a', 'train'), ('others', 'b', 'train')]),
    ):
        with open(root / f'{name}.csv', 'w', newline='') as file:
            csv.writer(file).writerows([(column, 'label', 'split'), *lines])
    (root / 'npz').mkdir()
    np.savez(root / 'npz' / 'train.npz', image=images, label=np.arange(8) % 2)
    (root / 'corpus' / 'train').mkdir(parents=True)
    (root / 'corpus' / 'train' / 'a.txt').write_text('words that follow one another')
    of_images = {'image_size': COLOURED[:2]}
    of_text = {'length': LENGTH, 'tokenizer': tokenizer}
    return {
        'tfds': {'name': 'digits', **of_images},
        'folder': {'path': str(root / 'folder'), **of_images},
        'manifest': {'path': str(root / 'manifest.csv'), **of_images},
        'npz': {'path': str(root / 'npz'), **of_images},
        'text': {'path': str(root / 'text.csv'), **of_text},
        'corpus': {'path': str(root / 'corpus'), **of_text},
    }


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory) -> str:
    """A tokenizer.json of bytes with a padding token."""
    definition = json.loads(open_tokenizer('bytes').definition)
    padding = {'strategy': 'BatchLongest', 'direction': 'Right', 'pad_to_multiple_of': None}
    definition['padding'] = {**padding, 'pad_id': 0, 'pad_type_id': 0, 'pad_token': '!'}
    path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
    path.write_text(json.dumps(definition))
    return str(path)


def config(kind: str, keys: dict, **changes) -> Config:
    keys = {'source': kind, **keys, **changes}
    return resolve(Config(base().to_dict()).replace(**{f'data__{k}': keys[k] for k in keys}), None)


def opened(kind: str, keys: dict, **changes):
    return open_source(config(kind, keys, **changes).data, 'train', 'config.data.train')


def numbers(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 2**64, count, np.uint64)


@pytest.mark.parametrize('mode', ['whole', 'numbered', 'cropped', 'not in memory'])
@pytest.mark.parametrize('kind', SOURCES)
def test_fetched_arrays_are_those_declared(kind, mode, data):
    changes = {
        'cropped': {'random_crop': (0.3, 0.9)} if SOURCES[kind][1] == IMAGE else {},
        'not in memory': {'memory_mib': 0},
    }.get(mode, {})
    source = opened(kind, data[kind], **changes)
    assert source.features == DECLARED[kind]
    order = np.array([1, 0, 1]) % len(source)
    batch = source.fetch(order, None if mode in ('whole', 'not in memory') else numbers(3))
    assert list(batch) == list(source.features)
    for name, feature in source.features.items():
        assert batch[name].shape == (3, *feature.shape), name
        assert batch[name].dtype == feature.dtype, name


@pytest.mark.parametrize('kind', SOURCES)
def test_the_input_of_an_old_run_is_that_of_its_source(kind, data):
    """The feature is derived from the config and the shape in config.json alone."""
    source = opened(kind, data[kind])
    result = input_feature(config(kind, data[kind]).data, source.shape)
    assert result == source.model_input == DECLARED[kind][source.inputs]


@pytest.mark.parametrize('kind', SOURCES)
def test_numbers_determine_the_crops_only(kind, data):
    """Each number affects its example only, and none without a random transform."""
    order, first = np.array([1, 0, 1, 0]), numbers(4)
    if SOURCES[kind][1] == IMAGE:
        source = opened(kind, data[kind], random_crop=(0.3, 0.6))
        assert source.random
        one, same = source.fetch(order, first), source.fetch(order, first.copy())
        other = source.fetch(order, np.array([first[0], *first[2:], first[1]]))
        np.testing.assert_array_equal(one['image'], same['image'])
        np.testing.assert_array_equal(one['image'][0], other['image'][0])
        assert (one['image'][1:] != other['image'][1:]).any((1, 2, 3)).all()
        assert (one['image'] != source.fetch(order)['image']).any((1, 2, 3)).all()
        np.testing.assert_array_equal(one['label'], other['label'])
    source = opened(kind, data[kind])
    assert not source.random
    order = order % len(source)
    for name, array in source.fetch(order, first).items():
        np.testing.assert_array_equal(array, source.fetch(order)[name])


def test_images_and_text_are_distinguished_by_meaning_not_shape(data):
    """For example, windows of a row of pixels are images, and text models refuse them."""
    row = Feature((LENGTH,), np.uint8, IMAGE)
    text = opened('corpus', data['corpus'])
    assert len(row.shape) == len(text.shape)
    assert abstract_inputs(row).dtype == np.float32
    assert abstract_inputs(text.model_input).dtype == np.int32
    models = {
        name: make_model(Config({'model': {'name': name}}).model, 300) for name in ('mlp', 'gpt')
    }
    check_inputs(models['mlp'], row.meaning, None)
    check_inputs(models['gpt'], text.model_input.meaning, text.tokenizer)
    for tokenizer in (None, text.tokenizer):  # the meaning decides
        with pytest.raises(UserError, match='gpt reads text, but the data is images'):
            check_inputs(models['gpt'], row.meaning, tokenizer)
    with pytest.raises(UserError, match='mlp reads images, but the data is text'):
        check_inputs(models['mlp'], text.model_input.meaning, text.tokenizer)
