"""Makes fields_keras.json.xz: what each field of the layers in Keras's model config changes.

The script takes the model configs of keras.applications, sets fields of the layers of a ResNet50 to
other legal values, and compares the outputs with those before. No weights are stored:
`make_weights.weight` makes them. The logits of two values that are computed here are stored too.

This requires keras==3.15.1 and torch; the versions are recorded.

    KERAS_BACKEND=torch python -m tests.golden.make_fields_keras
"""

import functools
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.make_weights import inputs, weight

HERE = Path(__file__).parent
made = functools.cache(weight)
SHAPE = (64, 64, 3)
# Layer -> field -> other values. Of the fields that concern only training there are a few examples.
VALUES: dict[str, dict[str, list[Any]]] = {
    'conv4_block2_2_conv': {
        'padding': ['valid'], 'dilation_rate': [[2, 2]], 'activation': ['relu'],
        'kernel_regularizer': ['l2'],
    },
    'conv1_bn': {'epsilon': [1e-3], 'momentum': [0.5], 'center': [False]},
    'conv1_relu': {'activation': ['tanh']},
    'pool1_pool': {'padding': ['same'], 'strides': [[1, 1]]},
    'predictions': {'activation': ['sigmoid', 'relu']},
}  # fmt: skip


def models() -> dict[str, Any]:
    import keras
    from keras.src.backend.common import dtypes

    # Otherwise Keras would convert float64 to float32 in BatchNorm and in means.
    dtypes.BIT64_TO_BIT32_DTYPE['float64'] = 'float64'
    keras.backend.set_floatx('float64')
    make = keras.applications
    return {
        'resnet50': make.ResNet50(weights=None, input_shape=SHAPE, classes=7),
        'vgg16': make.VGG16(weights=None, input_shape=(32, 32, 3), classes=7),
    }


def outputs(config: dict[str, Any], logits: bool = False) -> np.ndarray:
    """The outputs of a model with this config, before the last activation if `logits`."""
    import keras

    config = json.loads(json.dumps(config))
    shape = tuple(config['layers'][0]['config']['batch_shape'][1:])
    if logits:
        config['layers'][-1]['config']['activation'] = 'linear'
    for layer in config['layers']:  # values that are replaced below need no random numbers
        if isinstance(layer['config'].get('kernel_initializer'), dict):
            layer['config']['kernel_initializer'] = 'zeros'
    model = keras.Model.from_config(config)
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(made(f'{layer.name}/{variable.name}', tuple(variable.shape)))
    out = model(inputs(shape), training=False)
    return out.detach().numpy()


def changed(config: dict[str, Any], layer: str, field: str, value: Any) -> dict[str, Any]:
    """The config with another value of a field of a layer; of all such layers if it is ''."""
    config = json.loads(json.dumps(config))
    for each in config['layers']:
        if each['config']['name'] == layer or (not layer and field in each['config']):
            each['config'][field] = value
    return config


def main() -> None:
    import keras
    import torch

    content: dict[str, Any] = {
        'versions': {'keras': keras.__version__, 'torch': torch.__version__.split('+')[0]},
        'configs': {}, 'cases': [], 'logits': {},
    }  # fmt: skip
    for name, model in models().items():
        config = json.loads(json.dumps(model.get_config()))
        content['configs'][name] = {'class_name': 'Functional', 'config': config}
        if name != 'resnet50':
            continue
        usual = outputs(config)
        for layer, fields in VALUES.items():
            for field, value in ((field, v) for field, values in fields.items() for v in values):
                case = {'model': name, 'layer': layer, 'field': field, 'value': value}
                try:
                    other = outputs(changed(config, layer, field, value))
                    case['same'] = other.shape == usual.shape and bool((other == usual).all())
                except Exception as error:
                    case['error'] = f'{type(error).__name__}: {error}'.splitlines()[0][:80]
                content['cases'].append(case)
                print(case, flush=True)
        # The logits of values that are computed here.
        eps = changed(config, '', 'epsilon', 1e-3)
        content['logits']['epsilon'] = outputs(eps, logits=True).tolist()
        pooled = json.loads(json.dumps(config).replace('GlobalAverageP', 'GlobalMaxP'))
        content['logits']['max'] = outputs(pooled, logits=True).tolist()
    text = json.dumps(content, separators=(',', ':'))
    (HERE / 'fields_keras.json.xz').write_bytes(lzma.compress(text.encode(), preset=9))


if __name__ == '__main__':
    main()
