"""Fine-tune: VGG16's ImageNet weights, frozen, under a new head for two classes of your images.

    jaxtrain import keras NOTOP.h5 --model=vgg16 --workdir=runs/vgg16
    jaxtrain train --config=configs/finetune/vgg16_folder.py --workdir=runs/pets

NOTOP.h5 is what Keras downloads, vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5. The folder
`pets` (another by --config.data.path) holds train/CLASS/*.jpg, val/CLASS/*.jpg and
test/CLASS/*.jpg, or just CLASS/*.jpg, which is dealt out 80:10:10. At 150x150 the backbone gives
4x4x512 features; then a dense layer of 256 with ReLU and one output with sigmoid cross-entropy:
16,812,353 parameters of which 2,097,665 are trained, by RMSprop at 2e-5, batches of 20, 10 epochs
of 100 steps. It is the feature extraction of F. Chollet, Deep Learning with Python (2017), section
5.3.1; the losses of 100 steps were those of Keras to 1e-4 (tests/runs/test_parity.py). Accuracy on
val, published there for 2,000 photos of cats and dogs (with dropout and plain rescaling): "about
90%"; not measured here yet.

    jaxtrain train --config=configs/finetune/vgg16_folder.py:finetune_top --workdir=runs/pets_top

starts from the run above and trains the last block of the backbone too, at a tenth of the rate
(section 5.3.2 there).

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

    # What these weights were trained with and go by: blue, green, red, less the mean of ImageNet,
    # in 0..255 and divided by no deviation (Keras calls it 'caffe'). Plain x / 255 would run
    # without a word, but not as the same network: as ReLU and max-pooling keep scale, it amounts to
    # biases made 255 times as heavy in every layer, on images not centred and red taken for blue.
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
        # A head that has learned already: gradients of a random one would spoil the block.
        c.init_from = 'runs/pets'
        c.restore.rules = (('.*', 'load'),)
        c.groups = (('backbone/block[1-4]_.*', 'frozen'), ('.*', 'trained'))
        c.optim.lr_mult = (('backbone/.*', 0.1), ('head/.*', 1.0))
    return c
