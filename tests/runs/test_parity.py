"""Three classic programs have the same losses here as in their own frameworks, step by step.

Each test takes the settings of a config file of this repository (learning rate, epsilon, loss,
preprocessing, frozen parameters), and trains with jaxtrain's step from the weights and on the
batches that tests/golden/make_curves.py gave to PyTorch's MNIST MLP, Keras's CIFAR-10 CNN and a
Keras VGG16 with a new head. The two small programs are compared in float64, because they amplify
rounding errors (see make_curves.Program).
"""

import itertools
import json

import jax
import numpy as np
import pytest

from jaxtrain.config.durations import Run
from jaxtrain.config.files import load
from jaxtrain.optim.optimizers import make_optimizer
from jaxtrain.params.partition import count, flatten, unflatten
from jaxtrain.step.learner import make_learner
from jaxtrain.step.state import Update, init_state
from jaxtrain.weights.bundle import resolve
from tests.conftest import ROOT
from tests.golden.make_curves import CURVES, PROGRAMS, Program, batches, weights
from tests.support.inputs import image_source

MLP = 'configs/scratch/mnist_mlp.py'
CNN = 'configs/full/cifar10_cnn.py'
VGG = 'configs/finetune/vgg16_folder.py'

CONFIGS = {'mnist_mlp': MLP, 'cifar10_cnn': CNN, 'vgg16_34': VGG, 'vgg16_150': VGG}

GOLDEN = json.loads(CURVES.read_text())['losses']


def build(config: str, program: Program, dtype: str, *overrides: str):
    """The jitted step of a config file, its state with the program's weights, and the partition."""
    cfg = resolve(load(str(ROOT / config), [f'--config.{word}' for word in overrides]), None)
    classes = tuple(map(str, range(program.classes)))
    learner = make_learner(cfg, image_source(1, program.image_shape, classes))
    (params, model_state), part = learner.variables, learner.part
    assert {path: leaf.shape for path, leaf in flatten(params).items()} == program.shapes
    run = Run(program.steps, cfg.batch_size, cfg.batch_size)
    optimizer = make_optimizer(cfg.optim, list(part.groups), part.trainable, run)
    given = unflatten({p: w.astype(dtype) for p, w in weights(program).items()})
    update = Update(optimizer.tx, cfg.ema)
    state = init_state((given, model_state), np.uint32(0), update, part)
    return jax.jit(learner.train_step(update), donate_argnums=0), jax.device_put(state), part


def errors(name: str, *overrides: str, steps: int | None = None) -> np.ndarray:
    """The relative differences of our losses from the reference's, float64 [steps]."""
    program = PROGRAMS[name]
    losses = []
    with jax.enable_x64(program.dtype == 'float64'):
        step, state, _ = build(CONFIGS[name], program, program.dtype, *overrides)
        for images, labels in itertools.islice(batches(program), steps):
            state, metrics = step(state, {'image': images, 'label': labels})
            losses.append(float(metrics['loss']))
    golden = np.array(GOLDEN[name][:steps])
    return np.abs(np.array(losses) - golden) / golden


@pytest.mark.parametrize(
    ('name', 'steps'),
    [
        ('mnist_mlp', 100),
        pytest.param('cifar10_cnn', 100, marks=pytest.mark.slow),
        pytest.param('vgg16_34', 100, marks=pytest.mark.slow),
        # A step takes 5 CPU-seconds. vgg16_34 takes 100 steps with the same config; this case shows
        # that the program's own image and batch size change nothing.
        pytest.param('vgg16_150', 5, marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_the_original(name, steps):
    differences = errors(name, steps=steps)
    assert len(differences) == steps
    assert differences.max() < 1e-4, f'step {differences.argmax()}'


@pytest.mark.parametrize(
    ('name', 'wrong'),
    [
        ('mnist_mlp', 'optim.lr=1.05e-3'),
        ('mnist_mlp', 'data.mean=(0.1307,)'),
        ('mnist_mlp', 'optim.name=adamax'),
        pytest.param('cifar10_cnn', 'optim.lr=1.05e-3', marks=pytest.mark.slow),
        pytest.param('cifar10_cnn', 'optim.name=adam', marks=pytest.mark.slow),
        pytest.param('cifar10_cnn', 'optim.args.eps=1e-4', marks=pytest.mark.slow),
        pytest.param('cifar10_cnn', 'data.scale=256.0', marks=pytest.mark.slow),
        pytest.param('vgg16_34', 'optim.lr=2.1e-5', marks=pytest.mark.slow),
        pytest.param('vgg16_34', 'optim.args.decay=0.99', marks=pytest.mark.slow),
        pytest.param('vgg16_34', 'data.channel_order=rgb', marks=pytest.mark.slow),
    ],
)
def test_a_wrong_setting_is_noticed(name, wrong):
    """The comparison above can fail: each of these settings is far outside its limit."""
    assert errors(name, wrong, steps=8).max() > 1e-3


@pytest.mark.parametrize(
    ('name', 'batch_size', 'total', 'trained'),
    [
        ('mnist_mlp', 64, 109_386, 109_386),
        ('cifar10_cnn', 32, 122_570, 122_570),
        ('vgg16_150', 20, 16_812_353, 2_097_665),
    ],
)
def test_sizes_are_those_of_the_original(name, batch_size, total, trained):
    program = PROGRAMS[name]
    _, state, part = build(CONFIGS[name], program, 'float32')
    trainable, _ = part.split(state.params)
    assert (count(state.params), count(trainable)) == (total, trained)
    cfg = load(str(ROOT / CONFIGS[name]), [])
    assert cfg.batch_size == program.batch_size == batch_size
    assert cfg.data.image_size in (None, program.image_shape[:2])
