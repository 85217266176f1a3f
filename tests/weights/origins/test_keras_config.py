"""Keras's model config: each field of a layer is computed, has no effect, or is refused.

Whether a value changes the outputs is what Keras computed (tests/golden/make_fields_keras.py).
"""

import copy
import json
import lzma
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.weights.origins.keras_config import Reading, read_resnet, read_vgg, stated
from jaxtrain.weights.schemas.keras import read
from jaxtrain.weights.schemas.schema import Given
from tests.golden.make_fields_keras import changed
from tests.weights.test_parity import apply, leaves_of

GOLDEN = Path(__file__).parents[2] / 'golden'
CONTENT = json.loads(lzma.decompress((GOLDEN / 'fields_keras.json.xz').read_bytes()))
CASES = [case for case in CONTENT['cases'] if 'error' not in case]


def reading(content, model: str = 'resnet50', given: Given | None = None) -> Reading:
    given = given or Given()
    network = read(json.dumps(content), 'some.h5', given)
    return read_vgg(network, 16, given) if model == 'vgg16' else read_resnet(network, 50, given)


def fault(content, model: str = 'resnet50') -> str:
    with pytest.raises(UserError) as caught:
        reading(content, model)
    assert '\n' not in str(caught.value) and 'some.h5' in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ('model', 'expected'),
    [
        ('resnet50', Reading((64, 64), 3, 1.001e-5, 'mean', 'classify', {})),
        ('vgg16', Reading((32, 32), 3, None, 'flatten', 'classify', {})),
    ],
)
def test_networks_of_keras_applications(model, expected):
    assert reading(CONTENT['configs'][model], model) == expected


@pytest.mark.parametrize('model', ['resnet50'])
def test_a_field_changes_what_is_computed_or_is_refused(model):
    """Of a value that changes the outputs, something is read; or it is refused."""
    usual = reading(CONTENT['configs'][model], model)
    refused = set()
    for case in CASES:
        if case['model'] != model:
            continue
        content = copy.deepcopy(CONTENT['configs'][model])
        content['config'] = changed(content['config'], case['layer'], case['field'], case['value'])
        try:
            made = reading(content, model)
        except UserError as error:
            # Linear is passed over, so that the next layer has another input.
            assert f'.{case["field"]}' in str(error) or case['value'] == 'linear'
            refused.add(case['field'])
            continue
        # Activations of the last layer do not change logits.
        last = case['layer'] == 'predictions' and case['field'] == 'activation'
        assert case['same'] or last or made != usual, case
    assert {'strides', 'padding', 'activation', 'center', 'epsilon'} <= refused


def test_eps_of_all_layers_is_read():
    content = copy.deepcopy(CONTENT['configs']['resnet50'])
    content['config'] = changed(content['config'], '', 'epsilon', 1e-3)
    assert reading(content).eps == 1e-3
    content['config'] = changed(content['config'], 'conv1_bn', 'epsilon', 1e-4)
    assert 'epsilon' in fault(content)


def test_pooling_of_resnet_by_maximum():
    text = json.dumps(CONTENT['configs']['resnet50']).replace('GlobalAverageP', 'GlobalMaxP')
    assert reading(json.loads(text)).pool == 'max'


def test_a_call_in_training_mode_is_refused():
    content = copy.deepcopy(CONTENT['configs']['resnet50'])
    layer = next(x for x in content['config']['layers'] if x['name'] == 'conv1_bn')
    layer['inbound_nodes'][0]['kwargs'] = {'training': True}
    assert 'conv1_bn.training' in fault(content)
    layer['inbound_nodes'][0]['kwargs'] = {'training': False, 'mask': None}
    reading(content)


def test_another_graph_is_refused():
    """A block that adds its own input twice has the same layers."""
    text = json.dumps(CONTENT['configs']['resnet50'])
    content = json.loads(text)
    layer = next(x for x in content['config']['layers'] if x['name'] == 'conv3_block2_add')
    (tensors,) = layer['inbound_nodes'][0]['args']
    tensors[0]['config']['keras_history'][0] = 'conv3_block2_3_bn'
    assert 'conv3_block2_add' in fault(content)


def test_rescaling_is_preprocessing():
    content = copy.deepcopy(CONTENT['configs']['vgg16'])
    layers = content['config']['layers']
    node = copy.deepcopy(layers[1]['inbound_nodes'])
    fields = {'name': 'rescaling', 'scale': 1 / 127.5, 'offset': -1.0, 'trainable': True}
    new = {'class_name': 'Rescaling', 'config': fields, 'name': 'rescaling', 'inbound_nodes': node}
    layers[1]['inbound_nodes'] = json.loads(
        json.dumps(node).replace(layers[0]['name'], 'rescaling')
    )
    layers.insert(1, new)
    made = reading(content, 'vgg16').preprocessing
    assert made == {'scale': 127.5, 'channel_order': 'rgb', 'mean': (1.0,), 'std': (1.0,)}


@pytest.mark.parametrize('damage', ['null', '[]', '{', '{}', '{"class_name": 3, "config": 4}'])
def test_damaged_config(damage):
    with pytest.raises(UserError) as caught:
        read(damage, 'some.h5', Given())
    assert 'some.h5' in str(caught.value) and '\n' not in str(caught.value)


def test_what_the_user_states():
    given = Given({'pooling': 'max', 'epsilon': '0.001', 'image_size': '[64,96]'})
    made = stated(given, 'some.h5', None)
    assert (made.pool, made.eps, made.image_size) == ('max', 1e-3, (64, 96))
    given.check_used()
    usual = reading(CONTENT['configs']['resnet50'])
    with pytest.raises(UserError, match='pooling'):
        stated(Given({'pooling': 'max'}), 'some.h5', usual)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'fields'), [('max', {'pool': 'max'}), ('epsilon', {'norm_eps': 1e-3})]
)
def test_logits_equal_those_of_keras(name, fields):
    with jax.enable_x64(True):
        model, _, variables = leaves_of('keras_resnet50_even', **fields)
        out = apply('keras_resnet50_even', model, variables)
    wanted = np.array(CONTENT['logits'][name])
    assert np.abs(out - wanted).max() / np.abs(wanted).max() <= 1e-12
