"""The checkpoint of configs/alphabets.py on handwritten digits, 10 examples per class.

This comparison has the opposite result: scikit-learn's 8x8 digits are easy, and unlike printed
letters, so a checkpoint gains little or nothing. A comparison must be able to report that.

    jaxtrain compare --config=configs/digits.py --workdir=runs/digits --full=runs/alphabets/full

starts from the checkpoint of configs/alphabets.py; without --full it trains the same checkpoint.

variant   data                           starts from   trains             test    interval
full      54,000 letters, 90 classes     random        61,122 of 61,122   79.8%   78.4 to 81.3
scratch   100 digits, 10 classes         random        53,362 of 53,362   94.5%   92.8 to 96.0
linear    the same                       full          970 of 53,362      91.0%   88.6 to 93.0
finetune  the same                       full          53,362 of 53,362   95.4%   93.7 to 96.8

The figures are from one comparison with 5 seeds, on 2 cores of an x86-64 server CPU, which took one
minute. The verdict: it cannot tell whether scratch or finetune is best, between which a difference
of up to 2.3 points is possible, and the choice until then is scratch; linear is below both.

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

    # The small task is the same for the three arms: 10 examples per class, 300 steps.
    c.data.name = 'digits'
    c.data.limit = 10
    c.data.image_size = (20, 20)
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
        c.optim.lr_mult = (('backbone/.*', 0.3), ('head/.*', 1.0))
    return c
