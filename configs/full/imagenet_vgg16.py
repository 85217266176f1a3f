"""Full: VGG16 on ImageNet (ILSVRC 2012), 74 epochs.

    jaxtrain train --config=configs/full/imagenet_vgg16.py --workdir=runs/imagenet_vgg16
    jaxtrain plan --config=configs/full/imagenet_vgg16.py --topology=v5e:4x4

The recipe is SGD with momentum, batches of 256 at 0.01, weight decay of 5e-4, dropout of 0.5 in the
two dense layers, random crops and flips, as in the paper; but cosine decay instead of its three
steps of the learning rate, and a short warm-up instead of starting from a shallower network. Top-1
on the validation images, published: 73.0% for configuration D at a single test scale (Simonyan &
Zisserman 2014, arXiv:1409.1556, table 3), 71.6% in torchvision. It was not measured here: ImageNet
requires a login; the first start reports where to put its two archives.

    jaxtrain train --config=configs/full/imagenet_vgg16.py:tiny --workdir=runs/vgg_tiny

The variant tiny is the same recipe for scikit-learn's digits: test accuracy measured 93.5%
(92.2% to 94.5% with four seeds; expect 90% to 97%), 26 s on 2 cores of an x86-64 server CPU.
"""

from jaxtrain.config import base, known_variant


def get_config(variant: str = 'full'):
    known_variant(variant, ('full', 'tiny'))
    c = base()
    c.regime = 'full'
    c.model.name = 'vgg'
    c.model.dropout = 0.5
    c.data.augment = (('flip',),)
    c.optim.name = 'sgd'
    c.optim.args.momentum = 0.9
    c.optim.weight_decay = 5e-4
    c.every = 'epochs'
    c.eval_every = 5
    c.log_every = 1

    if variant == 'tiny':
        return tiny(c)

    c.model.depth = 16
    c.precision = 'bfloat16'
    c.data.name = 'imagenet2012'
    # The best checkpoint is chosen on a part held out of train; the validation images are the test
    # split, which is read once.
    c.data.train = 'train[:99%]'
    c.data.val = 'train[99%:]'
    c.data.test = 'validation'
    c.data.image_size = (224, 224)
    c.data.crop = 0.875
    c.data.random_crop = (0.08, 1.0)
    c.data.mean = (0.485, 0.456, 0.406)
    c.data.std = (0.229, 0.224, 0.225)
    c.data.threads = 64
    c.batch_size = 256
    c.epochs = 74.0
    c.optim.lr = 0.01
    c.optim.warmup = '1 epoch'
    return c


def tiny(c):
    """The same recipe for scikit-learn's handwritten digits, with a narrow VGG11."""
    c.model.depth = 11
    c.model.widths = (8, 16, 32, 64, 64)
    c.model.hidden = (128,)
    c.model.dropout = 0.2
    c.data.name = 'digits'
    c.data.image_size = (32, 32)
    c.data.random_crop = (0.5, 1.0)
    c.data.augment = (('shift', 1),)  # a mirrored digit is not a digit
    c.batch_size = 32
    c.epochs = 15.0
    c.optim.lr = 0.02
    c.optim.warmup = '2 epochs'
    return c
