"""Scratch: the first program of the PyTorch tutorials, a three-layer perceptron on MNIST.

    jaxtrain train --config=configs/scratch/mnist_mlp.py --workdir=runs/mnist_mlp

The network is 784-128-64-10 with ReLU, which is 109,386 parameters. It is trained by Adam at 1e-3
with batches of 64 for 10 epochs, and prints the mean loss of each epoch. From the same weights, the
losses of 100 steps in float64 agree with PyTorch's to 1e-4 (tests/runs/test_parity.py). MNIST is
downloaded on first use (11.6 MB), without TensorFlow; without a network, put its four archives
where the error message says. The test accuracy was not measured yet.
"""

from jaxtrain.config import base


def get_config():
    c = base()
    c.regime = 'scratch'
    c.data.name = 'mnist'
    # Nothing is evaluated while training; test is read once, at the end.
    c.data.val = ''
    c.batch_size = 64
    c.epochs = 10.0
    c.every = 'epochs'
    c.log_every = 1

    # (x / 255 - 0.5) / 0.5, in -1 to 1.
    c.data.mean = (0.5,)
    c.data.std = (0.5,)

    c.model.name = 'mlp'
    c.model.hidden = (128, 64)

    c.optim.name = 'adam'
    c.optim.lr = 1e-3
    c.optim.schedule = (('.*', 'constant'),)
    # A step takes less than a millisecond, and dispatching each from the host would cost as much
    # again.
    c.steps_per_call = 50
    return c
