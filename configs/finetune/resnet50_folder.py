"""Fine-tune: an ImageNet ResNet50 with a new head, to classify your images.

    jaxtrain import torchvision resnet50-11ad3fa6.pth --model=resnet50 --workdir=runs/resnet50
    jaxtrain train --config=configs/finetune/resnet50_folder.py --workdir=runs/pets

The weights may be those of any ResNet of torchvision, timm or Keras: the model (its depth, the
place of its strides, eps) and the preprocessing are those of the imported weights. The folder
`pets` (--config.data.path names another) holds train/CLASS/*.jpg, val/CLASS/*.jpg and
test/CLASS/*.jpg, or only CLASS/*.jpg, which is divided 80:10:10.

The convolutions are trained by SGD with momentum at a tenth of the head's learning rate. BatchNorm
keeps ImageNet's statistics, scales and biases, because those of small batches of a small data set
are worse. The variant `linear` trains only the head:

    jaxtrain train --config=configs/finetune/resnet50_folder.py:linear --workdir=runs/pets_linear

Accuracy and time were not measured, because the project includes no such weights or images.
"""

from jaxtrain.config import base, known_variant


def get_config(variant: str = 'finetune'):
    known_variant(variant, ('finetune', 'linear'))
    c = base()
    c.regime = 'finetune'
    c.data.source = 'folder'
    c.data.path = 'pets'
    c.data.augment = (('flip',), ('shift', 8))
    c.batch_size = 32
    c.epochs = 10.0
    c.every = 'epochs'
    c.eval_every = 1

    c.model.name = ''  # that of the weights
    c.init_from = 'runs/resnet50'
    c.restore.rules = (('head/.*', 'init'), ('.*', 'load'))

    c.optim.name = 'sgd'
    c.optim.args.momentum = 0.9
    c.optim.lr = 1e-2
    c.optim.lr_mult = (('backbone/.*', 0.1), ('head/.*', 1.0))
    c.optim.weight_decay = 1e-4
    c.groups = (
        ('backbone/(.*/)?norm_.*', 'frozen'),
        ('backbone/.*', 'backbone'),
        ('head/.*', 'head'),
    )
    if variant == 'linear':
        c.groups = (('backbone/.*', 'frozen'), ('head/.*', 'head'))
        c.optim.lr = 1e-1
        c.optim.lr_mult = (('.*', 1.0),)
    return c
