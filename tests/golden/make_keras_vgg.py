"""Makes keras_vgg.npz and keras_vgg.json: the outputs of Keras's VGG, and the layout of its files.

The first command below requires Keras 3 on JAX (keras==3.15.1, jax==0.10.2). The second requires
tf-keras (tf_keras==2.21.0), and adds the layout of its files to keras_vgg.json. No weights are
stored: `weight` makes them from each array's name, here and in the tests.

    KERAS_BACKEND=jax python tests/golden/make_keras_vgg.py
    python tests/golden/make_keras_vgg.py tf-keras
"""

import json
import os
import sys
import tempfile
import zlib
from pathlib import Path

import h5py
import numpy as np

HERE = Path(__file__).parent
DEPTHS = (16, 19)
# Name -> (depth, height, width, units of fc1, fc2, predictions). () means no top; the mean and the
# maximum of each channel over the positions are stored then.
CASES = {
    'vgg16_notop_97x65': (16, 97, 65, ()),
    'vgg19_notop_97x65': (19, 97, 65, ()),
    'vgg16_notop_150': (16, 150, 150, ()),
    'vgg19_notop_150': (19, 150, 150, ()),
    'vgg16_top_97x120': (16, 97, 120, (24, 16, 10)),
    'vgg19_top_97x120': (19, 97, 120, (24, 16, 10)),
    'vgg16_top_150': (16, 150, 150, (4096, 4096, 1000)),
    'vgg16_top_224': (16, 224, 224, (4096, 4096, 1000)),
    'vgg19_top_224': (19, 224, 224, (4096, 4096, 1000)),
}


def weight(layer: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 weights; kernels keep the scale of activations, biases are large enough to matter."""
    normal = np.random.RandomState(zlib.crc32(f'{layer}/{name}'.encode())).standard_normal(shape)
    return (normal * (0.1 if name == 'bias' else np.sqrt(2 / np.prod(shape[:-1])))).astype('f4')


def images(height: int, width: int) -> np.ndarray:
    """float32 [2, height, width, 3], as if preprocessed."""
    return np.random.RandomState(height * width).standard_normal((2, height, width, 3)).astype('f4')


def build(keras, depth: int, height: int, width: int, units: tuple[int, ...]):
    """Keras's model with these weights and without its softmax."""
    make = {16: keras.applications.VGG16, 19: keras.applications.VGG19}[depth]
    shape = (height, width, 3)
    if units[:2] == (4096, 4096):
        model = make(weights=None, input_shape=shape, classes=units[2], classifier_activation=None)
    else:
        model = make(weights=None, include_top=False, input_shape=shape)
        x = keras.layers.Flatten(name='flatten')(model.output) if units else model.output
        for name, width_, activation in zip(
            ('fc1', 'fc2', 'predictions'), units, ('relu', 'relu', None), strict=False
        ):
            x = keras.layers.Dense(width_, activation=activation, name=name)(x)
        model = keras.Model(model.input, x, name=f'vgg{depth}')
    for layer in model.layers:
        arrays = [np.shape(array) for array in layer.get_weights()]
        names = ('kernel', 'bias')[: len(arrays)]
        layer.set_weights([weight(layer.name, *it) for it in zip(names, arrays, strict=True)])
    return model


def main() -> None:
    os.environ['KERAS_BACKEND'] = 'jax'
    import jax
    import keras

    jax.config.update('jax_enable_x64', True)
    keras.backend.set_floatx('float64')
    outputs = {}
    for case, (depth, height, width, units) in CASES.items():
        out = np.asarray(build(keras, depth, height, width, units)(images(height, width)))
        assert out.dtype == np.float64
        outputs[case] = out if units else np.stack([out.mean((1, 2)), out.max((1, 2))])
        print(case, outputs[case].shape, float(np.abs(out).max()))
    np.savez_compressed(HERE / 'keras_vgg.npz', **outputs)
    keras.backend.set_floatx('float32')
    write_manifests(keras, {'keras3': 'x.weights.h5', 'keras3-legacy': 'x.h5'})


def write_manifests(keras, files: dict[str, str]) -> None:
    """Adds the content of `files` (layout -> name) to keras_vgg.json, with and without a top."""
    path = HERE / 'keras_vgg.json'
    stored = json.loads(path.read_text()) if path.exists() else {}
    for depth in DEPTHS:
        for top in (True, False):
            make = {16: keras.applications.VGG16, 19: keras.applications.VGG19}[depth]
            shape = (224, 224, 3) if top else (None, None, 3)
            model = make(weights=None, include_top=top, input_shape=shape)
            for layout, name in files.items():
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / name
                    whole = layout == 'keras3-legacy'
                    model.save(file) if whole else model.save_weights(file)
                    kind = 'top' if top else 'notop'
                    stored[f'{layout}/vgg{depth}/{kind}'] = manifest(file)
    path.write_text(json.dumps(stored, separators=(',', ':'), sort_keys=True) + '\n')


def manifest(file: Path) -> dict:
    """Address -> shape (null for a group) and attributes, in HDF5's order; '' is the root."""
    items = {}

    def note(address: str, item) -> None:
        attributes = {
            key: np.asarray(value).astype(str).tolist()
            for key, value in item.attrs.items()
            if key in ('name', 'layer_names', 'weight_names', 'backend', 'keras_version')
        }
        shape = list(item.shape) if isinstance(item, h5py.Dataset) else None
        items[address] = [shape, attributes]

    with h5py.File(file) as opened:
        note('', opened)
        opened.visititems(note)
    return items


if __name__ == '__main__':
    if sys.argv[1:] == ['tf-keras']:
        import tf_keras

        write_manifests(tf_keras, {'tf-keras': 'x.h5', 'tf-keras3': 'x.weights.h5'})
    else:
        main()
