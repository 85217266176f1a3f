"""Full: the first convolutional program of the Keras tutorials, on all of CIFAR-10.

    jaxtrain train --config=configs/full/cifar10_cnn.py --workdir=runs/cifar10_cnn

Three 3x3 convolutions without padding (32, 64, 64), two 2x2 max-pools, a dense layer of 64, 10
outputs: 122,570 parameters, Adam at 1e-3, batches of 32, 10 epochs, and after each the accuracy on
the test split. From the same weights, the losses of 100 steps in float64 are Keras's to 1e-4
(tests/runs/test_parity.py). CIFAR-10 is fetched on first use (170 MB), without TensorFlow; where
there is no network, put its archive where the message says. Test accuracy, published: "over 70%"
(tensorflow.org/tutorials/images/cnn); not measured here yet.

As in the tutorial, the best checkpoint is chosen on the test split itself. For a number to report,
choose on a part of the training split: --config.data.train='train[:90%]'
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

    # x / 255, which is 0 to 1.
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
    # A step takes 12 ms on 2 cores; handed over one at a time it lost about 2 ms on the host.
    c.steps_per_call = 10
    return c
