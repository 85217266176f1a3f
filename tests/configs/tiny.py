"""A config for tests: a small network on scikit-learn's digits. A run takes a second or two."""

from jaxtrain.config import base, known_variant


def get_config(variant: str = 'scratch'):
    known_variant(variant, ('full', 'scratch', 'linear', 'finetune'))
    c = base()
    c.model.name = 'cnn'
    c.model.widths = (8, 16)
    c.data.name = 'digits'
    c.batch_size = 32
    c.optim.lr = 1e-2
    c.optim.weight_decay = 1e-2
    c.log_every = 5
    c.eval_every = 10

    if variant == 'full':
        c.regime = 'full'
        c.steps = 60
        c.eval_every = 30
        return c

    c.data.limit = 5
    c.steps = 20
    if variant in ('linear', 'finetune'):
        c.regime = 'finetune'
        c.init_from = 'nowhere'
        c.restore.rules = (('head/.*', 'init'), ('.*', 'load'))
    if variant == 'linear':
        c.groups = (('backbone/.*', 'frozen'), ('head/.*', 'head'))
    if variant == 'finetune':
        c.optim.lr_mult = (('backbone/.*', 0.1), ('head/.*', 1.0))
    return c
