"""Fine-tune: a new head on VGG16's frozen ImageNet weights, for two classes of your images.

    jaxtrain import keras NOTOP.h5 --model=vgg16 --workdir=runs/vgg16
    jaxtrain train --config=configs/finetune/vgg16_folder.py --workdir=runs/pets

NOTOP.h5 is the file that Keras downloads, vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5. The
folder `pets` (--config.data.path names another) holds train/CLASS/*.jpg, val/CLASS/*.jpg and
test/CLASS/*.jpg, or only CLASS/*.jpg, which is divided 80:10:10. At 150x150 the backbone returns
4x4x512 features; a dense layer of 256 units with ReLU and one output with sigmoid cross-entropy
follow. Of the 16,812,353 parameters, 2,097,665 are trained, by RMSprop at 2e-5, in 10 epochs of 100
steps with batches of 20. This is the feature extraction of F. Chollet, Deep Learning with Python
(2017), section 5.3.1; the losses of 100 steps agree with Keras's to 1e-4
(tests/runs/test_parity.py). The accuracy on val that is published there for 2,000 photos of cats
and dogs (with dropout and plain rescaling) is "about 90%"; it was not measured here yet.

    jaxtrain train --config=configs/finetune/vgg16_folder.py:finetune_top --workdir=runs/pets_top

starts from the run above and also trains the last block of the backbone, at a tenth of the learning
rate (section 5.3.2 there).

For more than two classes add --config.task.name=classify.
"""

from jaxtrain.config import base, known_variant


def get_config(variant: str = 'head'):
    known_variant(variant, ('head', 'finetune_top'))
    c = base()
    c.regime = 'finetune'
    c.data.source = 'folder'
    c.data.path = 'pets'
    c.data.image_size = (150, 150)
    c.task.name = 'binary'
    c.batch_size = 20
    c.steps = 1000
    c.log_every = 100
    c.eval_every = 100

    # The preprocessing that these weights were trained with (Keras calls it 'caffe'): channels in
    # the order blue, green, red, in 0..255, minus ImageNet's mean, divided by no deviation. Plain x
    # / 255 would run without an error, but as another network: ReLU and max-pooling keep the scale,
    # so every layer's biases would weigh 255 times as much, on images that are not centred, with
    # red and blue exchanged.
    c.data.scale = 1.0
    c.data.channel_order = 'bgr'
    c.data.mean = (103.939, 116.779, 123.68)
    c.data.std = (1.0,)

    c.model.name = 'vgg'
    c.model.depth = 16
    c.model.hidden = (256,)

    c.init_from = 'runs/vgg16'
    c.restore.rules = (('head/.*', 'init'), ('.*', 'load'))
    c.groups = (('backbone/.*', 'frozen'), ('head/.*', 'head'))

    c.optim.name = 'rmsprop'
    c.optim.lr = 2e-5
    c.optim.args.decay = 0.9
    c.optim.args.eps = 1e-7
    c.optim.schedule = (('.*', 'constant'),)

    if variant == 'finetune_top':
        # The head is already trained: the gradients of a random head would damage the block.
        c.init_from = 'runs/pets'
        c.restore.rules = (('.*', 'load'),)
        c.groups = (('backbone/block[1-4]_.*', 'frozen'), ('.*', 'trained'))
        c.optim.lr_mult = (('backbone/.*', 0.1), ('head/.*', 1.0))
    return c
