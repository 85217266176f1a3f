"""Makes curves.json: training losses of three classic programs in their own frameworks.

    KERAS_BACKEND=jax python tests/golden/make_curves.py [PROGRAM ...]

This requires torch and keras. The weights and batches are not stored; the tests make them again
from integers and uniform numbers of `np.random.RandomState`, whose streams NumPy keeps stable. This
file does not import jaxtrain, and the tests that import it need neither framework.
"""

import json
import math
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

CURVES = Path(__file__).with_name('curves.json')

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Program:
    """The model, the data and the length of a program.

    Attributes:
      shapes: parameter path -> shape; kernels are [in, out] or [height, width, in, out].
      image_shape: (height, width, channels).
      classes: number of classes.
      batch_size, steps: examples per step, and number of steps.
      dtype: dtype of the computation. The two small programs amplify a difference of 1e-7 in the
        weights, one rounding, to 1e-2 in the loss within 100 steps (because of ReLU and Adam's
        quotient, in every framework), so only float64 can show that two programs are the same.
      batches: number of different batches, which are repeated.
      gain: factor on the first kernel, which keeps the features and the first losses moderate.
    """

    shapes: Shapes
    image_shape: tuple[int, int, int]
    classes: int
    batch_size: int
    steps: int
    dtype: str = 'float64'
    batches: int = 100
    gain: float = 1.0


def _layers(*layers: tuple) -> Shapes:
    """The shapes of kernels and biases, from one (path, *shape of the kernel) per layer."""
    shapes = {}
    for path, *kernel in layers:
        shapes[f'{path}/kernel'] = tuple(kernel)
        shapes[f'{path}/bias'] = (kernel[-1],)
    return shapes


# The number of convolutions in VGG16's five blocks, and their width.
VGG_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def _vgg(size: int, batch_size: int, gain: float) -> Program:
    layers, channels = [], 3
    for block, (count, width) in enumerate(VGG_BLOCKS, 1):
        for number in range(1, count + 1):
            layers.append((f'backbone/block{block}_conv{number}', 3, 3, channels, width))
            channels = width
    features = (size // 32) ** 2 * channels
    layers += [('head/dense_0', features, 256), ('head/logits', 256, 1)]
    shape = (size, size, 3)
    return Program(_layers(*layers), shape, 2, batch_size, 100, 'float32', batches=4, gain=gain)


MLP = _layers(
    ('backbone/dense_0', 784, 128), ('backbone/dense_1', 128, 64), ('head/logits', 64, 10)
)
CNN = _layers(
    ('backbone/conv_0', 3, 3, 3, 32),
    ('backbone/conv_1', 3, 3, 32, 64),
    ('backbone/conv_2', 3, 3, 64, 64),
    ('head/dense_0', 1024, 64),
    ('head/logits', 64, 10),
)

# The grey levels for which x / 255 and x * (1 / 255), which compilers may substitute, are equal in
# float32. Images have only these, so that all programs have bit-identical inputs.
_LEVELS = np.arange(256, dtype=np.float32)
LEVELS = np.flatnonzero(_LEVELS * (np.float32(1) / 255) == _LEVELS / 255).astype(np.uint8)

PROGRAMS = {
    'mnist_mlp': Program(MLP, (28, 28, 1), 10, 64, 100),
    'cifar10_cnn': Program(CNN, (32, 32, 3), 10, 32, 100),
    # For a quick test: few small images (a pool gets 17 rows, so that one row is left over).
    'vgg16_34': _vgg(34, 5, gain=1 / 16),
    'vgg16_150': _vgg(150, 20, gain=1 / 256),
}


def weights(program: Program) -> dict[str, np.ndarray]:
    """Initial float32 weights: uniform kernels with the variance 2 / fan-in, and small biases."""
    made = {path: _weight(path, shape) for path, shape in program.shapes.items()}
    first = next(iter(made))
    made[first] = made[first] * np.float32(program.gain)
    return made


def _weight(path: str, shape: tuple[int, ...]) -> np.ndarray:
    limit = math.sqrt(6 / math.prod(shape[:-1])) if path.endswith('kernel') else 0.1
    rng = np.random.RandomState(zlib.crc32(path.encode()))
    return rng.uniform(-limit, limit, shape).astype(np.float32)


def batches(program: Program) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches: uint8 [batch, height, width, channels] and int32 labels [batch].

    An image is a coarse pattern of its class with noise, and one label in eight is random. The loss
    therefore falls, but not to 0, where relative errors would be meaningless.
    """
    height, width, channels = program.image_shape
    rng = np.random.RandomState(0)
    coarse = rng.randint(0, 256, (program.classes, 5, 5, channels))
    rows, columns = np.arange(height) * 5 // height, np.arange(width) * 5 // width
    patterns = coarse[:, rows][:, :, columns]
    made = []
    for _ in range(program.batches):
        shown = rng.randint(0, program.classes, program.batch_size)
        noise = rng.randint(0, 256, (program.batch_size, *program.image_shape))
        images = LEVELS[(2 * patterns[shown] + noise) * len(LEVELS) // (3 * 256)]
        other = rng.randint(0, program.classes, program.batch_size)
        labels = np.where(rng.randint(0, 8, program.batch_size) == 0, other, shown)
        made.append((images, labels.astype(np.int32)))
    return (made[step % program.batches] for step in range(program.steps))


def mnist_mlp(program: Program, arrays: dict[str, np.ndarray]) -> list[float]:
    """The losses in PyTorch."""
    import torch
    from torch import nn

    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    linear = [module for module in model if isinstance(module, nn.Linear)]
    names = ('backbone/dense_0', 'backbone/dense_1', 'head/logits')
    with torch.no_grad():
        for module, name in zip(linear, names, strict=True):
            module.weight.copy_(torch.from_numpy(arrays[f'{name}/kernel'].T))
            module.bias.copy_(torch.from_numpy(arrays[f'{name}/bias']))
    model.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for images, labels in batches(program):
        inputs = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        inputs = inputs.double()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), torch.from_numpy(labels).long())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def cifar10_cnn(program: Program, arrays: dict[str, np.ndarray]) -> list[float]:
    """The losses in Keras."""
    keras, layers = _keras(program)
    model = keras.Sequential(
        [
            keras.Input(program.image_shape),
            layers.Conv2D(32, 3, activation='relu', name='backbone_conv_0'),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation='relu', name='backbone_conv_1'),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation='relu', name='backbone_conv_2'),
            layers.Flatten(),
            layers.Dense(64, activation='relu', name='head_dense_0'),
            layers.Dense(10, name='head_logits'),
        ]
    )
    _set(model, arrays)
    model.compile('adam', keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return _fit(model, program, lambda images: images.astype(np.float32) / 255)


def vgg16(program: Program, arrays: dict[str, np.ndarray]) -> list[float]:
    """The losses in Keras, with Keras's VGG16 and preprocessing."""
    keras, layers = _keras(program)
    backbone = keras.applications.VGG16(
        include_top=False, weights=None, input_shape=program.image_shape, name='backbone'
    )
    for layer in backbone.layers:
        layer.name = f'backbone_{layer.name}'
    _set(backbone, arrays)
    backbone.trainable = False
    model = keras.Sequential(
        [
            backbone,
            layers.Flatten(),
            layers.Dense(256, activation='relu', name='head_dense_0'),
            layers.Dense(1, activation='sigmoid', name='head_logits'),
        ]
    )
    model.build((None, *program.image_shape))
    _set(model, arrays)
    assert model.count_params() == sum(a.size for a in arrays.values())
    model.compile(keras.optimizers.RMSprop(learning_rate=2e-5), 'binary_crossentropy')
    return _fit(model, program, lambda x: keras.applications.vgg16.preprocess_input(x * 1.0))


def _keras(program: Program):
    import jax
    import keras

    jax.config.update('jax_enable_x64', program.dtype == 'float64')
    keras.config.set_floatx(program.dtype)
    keras.config.set_dtype_policy(program.dtype)
    return keras, keras.layers


def _set(model, arrays: dict[str, np.ndarray]) -> None:
    """Sets the weights of the layers whose names are our paths, with '_' for the first '/'."""
    for layer in model.layers:
        path = layer.name.replace('_', '/', 1)
        if f'{path}/kernel' in arrays:
            layer.set_weights([arrays[f'{path}/kernel'], arrays[f'{path}/bias']])


def _fit(model, program: Program, prepare) -> list[float]:
    losses = []
    for images, labels in batches(program):
        model.reset_metrics()  # otherwise it returns the mean over the steps so far
        losses.append(float(model.train_on_batch(prepare(images), labels)))
    return losses


MAKERS = {
    'mnist_mlp': mnist_mlp, 'cifar10_cnn': cifar10_cnn, 'vgg16_34': vgg16, 'vgg16_150': vgg16,
}  # fmt: skip


def main(names: list[str]) -> None:
    """Makes the curves of these programs, and keeps those of the others."""
    made = json.loads(CURVES.read_text()) if CURVES.exists() else {'losses': {}}
    made['versions'] = {name: version(name) for name in ('torch', 'keras', 'jax', 'numpy')}
    for name in names or PROGRAMS:
        program = PROGRAMS[name]
        losses = MAKERS[name](program, weights(program))
        made['losses'][name] = losses
        print(name, losses[0], losses[-1])
    CURVES.write_text(json.dumps(made, indent=1) + '\n')


if __name__ == '__main__':
    main(sys.argv[1:])
