"""A checkpoint trained on 90 Latin and Cyrillic letters, used for 24 Greek letters.

The question: you have 5 labelled images of each of 24 letters that no large data set contains. Does
a network trained on other alphabets help, and should its layers be frozen?

    jaxtrain compare --config=configs/alphabets.py --workdir=runs/alphabets

trains `full` once, then the other three variants side by side, and reports the differences with
intervals. Each variant can also be trained by itself, `full` first:

    jaxtrain train --config=configs/alphabets.py:full --workdir=runs/alphabets/full
    jaxtrain train --config=configs/alphabets.py:linear --workdir=runs/linear

variant   data                           starts from   trains             test    interval
full      54,000 letters, 90 classes     random        61,122 of 61,122   79.8%   78.4 to 81.3
scratch   120 letters, 24 classes        random        54,720 of 54,720   18.0%   16.1 to 20.0
linear    the same                       full          2,328 of 54,720    76.2%   74.3 to 78.0
finetune  the same                       full          54,720 of 54,720   70.3%   68.3 to 72.2

The figures are from one comparison with 5 seeds, on 2 cores of an x86-64 server CPU, which took 2.5
minutes: 18 s to make the letters, 53 s for `full`, and 2 to 6 s for each run of the other variants.

The intervals (95 in 100) are over seeds and test images. jaxtrain/config/keys.py documents each
key.
"""

from jaxtrain.config import base, known_variant


def get_config(variant: str = 'scratch'):
    known_variant(variant, ('full', 'scratch', 'linear', 'finetune'))
    c = base()
    c.model.name = 'cnn'
    c.model.widths = (24, 48, 96)
    c.optim.lr = 1e-2
    c.optim.weight_decay = 1e-2

    if variant == 'full':
        c.regime = 'full'
        c.data.name = 'glyphs/latin_cyrillic'
        c.optim.lr = 3e-3
        c.batch_size = 128
        c.steps = 1500
        c.eval_every = 500
        return c

    # The small task is the same for the three arms: 5 examples per class, 300 steps.
    c.data.name = 'glyphs/greek'
    c.data.limit = 5
    c.batch_size = 32
    c.steps = 300
    c.eval_every = 60

    if variant in ('linear', 'finetune'):
        c.regime = 'finetune'
        c.init_from = 'runs/alphabets/full'
        c.restore.rules = (('head/.*', 'init'), ('.*', 'load'))
    if variant == 'linear':
        c.groups = (('backbone/.*', 'frozen'), ('head/.*', 'head'))
    if variant == 'finetune':
        # The best of 0.03, 0.1 and 0.3 on val; lr was chosen on val too, for all three arms.
        c.optim.lr_mult = (('backbone/.*', 0.03), ('head/.*', 1.0))
    return c
