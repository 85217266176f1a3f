"""Full: ViT-S/16 on ImageNet (ILSVRC 2012), 90 epochs, after "Better plain ViT baselines".

    jaxtrain train --config=configs/full/imagenet_vit_s16.py --workdir=runs/imagenet_vit_s16
    jaxtrain plan --config=configs/full/imagenet_vit_s16.py --topology=v5e:4x4

The model has fixed sine and cosine positions, the mean over patches, and a layer with tanh before
the head. The recipe is AdamW at 1e-3 with batches of 1024, a warm-up of 10,000 steps and then
cosine decay, gradients clipped to a norm of 1, random crops, flips, RandAugment with two layers of
magnitude 10, mixup of 0.2, and bfloat16. Top-1 on the validation images, published: 76.5% (Beyer et
al. 2022, arXiv:2205.01580; big_vision states 6 to 7 hours on a TPU v3-8). It was not measured here:
ImageNet requires a login; the first start reports where to put its two archives.

    jaxtrain train --config=configs/full/imagenet_vit_s16.py:tiny --workdir=runs/vit_tiny

The variant tiny is the same recipe for scikit-learn's digits: test accuracy measured 96.7%
(expect 93% to 99%), 58 s on 2 cores of an x86-64 server CPU.
"""

from jaxtrain.config import base, known_variant


def get_config(variant: str = 'full'):
    known_variant(variant, ('full', 'tiny'))
    c = base()
    c.regime = 'full'
    c.model.name = 'vit'
    c.model.class_token = False
    c.model.class_position = False
    c.model.pool = 'mean'
    c.model.position = 'sincos2d'
    c.model.gelu = 'tanh'
    c.data.mixup = 0.2
    # The paper's 1e-4 is not multiplied by the learning rate; optax's weight decay is.
    c.optim.weight_decay = 0.1
    c.optim.clip_norm = (('.*', 1.0),)
    c.optim.lr = 1e-3
    c.every = 'epochs'
    c.eval_every = 5
    c.log_every = 1

    if variant == 'tiny':
        return tiny(c)

    c.model.width = 384
    c.model.heads = 6
    c.model.mlp = 1536
    c.model.representation = 384
    c.precision = 'bfloat16'
    c.data.name = 'imagenet2012'
    # The best checkpoint is chosen on a part held out of train; the validation images are the test
    # split, which is read once.
    c.data.train = 'train[:99%]'
    c.data.val = 'train[99%:]'
    c.data.test = 'validation'
    c.data.image_size = (224, 224)
    c.data.crop = 0.875
    c.data.random_crop = (0.05, 1.0)
    c.data.augment = (('flip',), ('randaugment', 2, 10))
    c.data.threads = 64
    c.batch_size = 1024
    c.epochs = 90.0
    c.optim.warmup = '10000 steps'
    return c


def tiny(c):
    """The same recipe for scikit-learn's handwritten digits, with a ViT of three small blocks."""
    c.model.patch = (4, 4)
    c.model.width = 64
    c.model.depth = 3
    c.model.heads = 4
    c.model.mlp = 128
    c.data.name = 'digits'
    c.data.image_size = (16, 16)
    c.data.random_crop = (0.5, 1.0)
    c.data.augment = (('randaugment', 1, 3),)
    c.batch_size = 64
    c.epochs = 60.0
    c.optim.lr = 3e-3
    c.optim.warmup = '10%'
    return c
