"""Full: the first convolutional program of the Keras tutorials, on all of CIFAR-10.

    jaxtrain train --config=configs/full/cifar10_cnn.py --workdir=runs/cifar10_cnn

The network has three 3x3 convolutions without padding (32, 64, 64), two 2x2 max-pools, a dense
layer of 64 units and 10 outputs, which is 122,570 parameters. It is trained by Adam at 1e-3 with
batches of 32 for 10 epochs, and evaluated on the test split after each epoch. From the same
weights, the losses of 100 steps in float64 agree with Keras's to 1e-4 (tests/runs/test_parity.py).
CIFAR-10 is downloaded on first use (170 MB), without TensorFlow; without a network, put its archive
where the error message says. Test accuracy, published: "over 70%"
(tensorflow.org/tutorials/images/cnn); not measured here yet.

As in the tutorial, the best checkpoint is chosen on the test split itself. For an accuracy to
report, choose it on a part of the training split: --config.data.train='train[:90%]'
--config.data.val='train[90%:]' --config.data.test=test.
"""

from jaxtrain.config import base


def get_config():
    c = base()
    c.regime = 'full'
    c.data.name = 'cifar10'
    c.data.val = 'test'
    c.data.test = ''
    c.batch_size = 32
    c.epochs = 10.0
    c.every = 'epochs'
    c.log_every = 1
    c.eval_every = 1
    c.eval_batch_size = 500

    # x / 255, in 0 to 1.
    c.data.mean = (0.0,)
    c.data.std = (1.0,)

    c.model.name = 'cnn'
    c.model.widths = (32, 64, 64)
    c.model.norm = 'none'
    c.model.padding = 'VALID'
    c.model.features = 'flatten'
    c.model.hidden = (64,)

    # Keras adds eps (1e-7) before it corrects the bias, optax and PyTorch after.
    c.optim.name = 'keras_adam'
    c.optim.lr = 1e-3
    c.optim.schedule = (('.*', 'constant'),)
    # A step takes 12 ms on 2 cores; dispatching each step from the host cost about 2 ms more.
    c.steps_per_call = 10
    return c
