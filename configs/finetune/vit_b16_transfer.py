"""Fine-tune: a Vision Transformer on another data set, after big_vision's recipe.

    jaxtrain import augreg B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz --model=vit_b16 --workdir=runs/vit_b16
    jaxtrain train --config=configs/finetune/vit_b16_transfer.py --workdir=runs/vit_cifar10

The recipe is SGD with momentum without weight decay, gradients clipped to a norm of 1, a warm-up of
500 steps and then cosine decay, batches of 512, and a head that starts at zero; the learning rate
(0.03, 0.01, 0.003 or 0.001) is chosen on val. The images of CIFAR-10 (--config.data.name names
another data set) are resized to the size that the weights were trained with; with
--config.data.image_size='(384,384)' the position embeddings are resized too.

Test accuracy, published for B/32 with big_vision's configs/transfer.py: 98.55% after 10,000 steps
(github.com/google-research/big_vision). It was not measured here, where neither
the weights nor the data can be downloaded.

The weights may also be timm's, torchvision's or Hugging Face's, of any size.
"""  # noqa: E501

from jaxtrain.config import base


def get_config():
    c = base()
    c.regime = 'finetune'
    c.data.name = 'cifar10'
    # The best checkpoint is chosen on a part held out of train; test is read once.
    c.data.train = 'train[:98%]'
    c.data.val = 'train[98%:]'
    c.data.augment = (('flip',),)
    c.data.memory_mib = 1024  # at 224x224 the images do not fit, and are decoded batch by batch
    c.batch_size = 512
    c.steps = 10_000
    c.eval_every = 1000

    c.model.name = ''  # that of the weights
    c.init_from = 'runs/vit_b16'
    c.restore.rules = (
        ('head/.*', 'init'),
        ('backbone/position', 'resize'),
        ('.*', 'load'),
    )

    c.optim.name = 'sgd'
    c.optim.args.momentum = 0.9
    c.optim.lr = 0.03
    c.optim.warmup = '500 steps'
    c.optim.clip_norm = (('.*', 1.0),)
    return c
