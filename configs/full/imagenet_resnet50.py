"""Full: ResNet-50 on ImageNet (ILSVRC 2012), 90 epochs.

    jaxtrain train --config=configs/full/imagenet_resnet50.py --workdir=runs/imagenet_resnet50
    jaxtrain plan --config=configs/full/imagenet_resnet50.py --topology=v5e:4x4

The recipe is SGD with Nesterov momentum, batches of 1024 at a learning rate of 0.1 per 256 images,
a warm-up of 5 epochs and then cosine decay, weight decay on kernels, label smoothing of 0.1, random
crops of 8% to 100% of the image, flips, and bfloat16. Top-1 on the validation images, published:
76.4% (Goyal et al. 2017, arXiv:1706.02677: 23.60% error, with a learning rate in steps and without
smoothing), 76.4% to 76.7% (Flax's ImageNet example, github.com/google/flax, with warm-up and
cosine). It was not measured here: ImageNet requires a login; the first start reports where to put
its two archives.

    jaxtrain train --config=configs/full/imagenet_resnet50.py:tiny --workdir=runs/resnet_tiny

The variant tiny is the same recipe for scikit-learn's digits: test accuracy measured 96.8%
(expect 93% to 99%), 40 s on 2 cores of an x86-64 server CPU.
"""

from jaxtrain.config import base, known_variant


def get_config(variant: str = 'full'):
    known_variant(variant, ('full', 'tiny'))
    c = base()
    c.regime = 'full'
    c.task.label_smoothing = 0.1
    c.model.name = 'resnet'
    c.data.augment = (('flip',),)
    c.optim.name = 'sgd'
    c.optim.args.momentum = 0.9
    c.optim.args.nesterov = True
    c.optim.weight_decay = 1e-4
    c.every = 'epochs'
    c.eval_every = 5
    c.log_every = 1

    if variant == 'tiny':
        return tiny(c)

    c.model.depth = 50
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
    c.batch_size = 1024
    c.epochs = 90.0
    c.optim.lr = 0.4
    c.optim.warmup = '5 epochs'
    return c


def tiny(c):
    """The same recipe for scikit-learn's handwritten digits, with a narrow ResNet-18."""
    c.model.depth = 18
    c.model.stem = 'conv3'
    c.model.widths = (8, 16, 32, 64)
    c.data.name = 'digits'
    c.data.image_size = (16, 16)
    c.data.random_crop = (0.5, 1.0)
    c.data.augment = (('shift', 1),)  # a mirrored digit is not a digit
    c.batch_size = 64
    c.epochs = 20.0
    c.optim.lr = 0.05
    c.optim.warmup = '2 epochs'
    return c
