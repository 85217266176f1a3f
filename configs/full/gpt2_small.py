"""Full: a GPT-2 of the smallest size, from random parameters, on text files.

    jaxtrain train --config=configs/full/gpt2_small.py --workdir=runs/gpt2_small
    jaxtrain train --config=configs/full/gpt2_small.py --config.data.path=texts --config.data.pattern='*.txt' --config.data.skip_folders='()' --config.data.tokenizer=tokenizer.json --workdir=runs/my_gpt2

The sizes of GPT-2 (Radford et al. 2019), trained as in github.com/karpathy/nanoGPT: AdamW at 6e-4
with a second moment of 0.95, decay of 0.1 on kernels, gradients clipped to a norm of 1, no dropout,
half a million tokens a step, 2,000 steps of warm-up, cosine down to a tenth; bfloat16. Published
there, for GPT-2's own tokens of OpenWebText: a loss of 2.85 nats after 600,000 steps. Not measured
here. Without anything said of the data it is the source code of Python's standard library (10 MB,
files dealt out 90:5:5), as bytes; GPT-2's tokenizer.json makes 124,439,808 parameters of it.

    jaxtrain train --config=configs/full/gpt2_small.py:tiny --workdir=runs/gpt2_tiny

The variant tiny is a small one for that library, with Muon, and 2,048 byte pairs of it for tokens
(tests/golden/make_python_bpe.py). On files that it has not seen, measured 1.54 (expect
1.40 to 1.60 bits per byte), 115 s on 2 cores of an x86-64 server CPU. Of the same files, put
together, gzip -9 makes 1.86 bits per byte, xz -9 1.55 (Python 3.11.7); these have not seen the other
files, as it has.
"""  # noqa: E501

import sysconfig
from pathlib import Path

from jaxtrain.config import base, known_variant


def get_config(variant: str = 'small'):
    known_variant(variant, ('small', 'tiny'))
    c = base()
    c.regime = 'full'
    c.task.name = 'lm'

    # Python's own library: files are dealt out by their paths. (A folder in it is called test.)
    c.data.source = 'corpus'
    c.data.path = sysconfig.get_paths()['stdlib']
    c.data.pattern = '*.py'
    c.data.skip_folders = (
        'site-packages', 'dist-packages', '__pycache__', 'test', 'tests', 'idle_test', 'lib2to3',
    )  # fmt: skip
    c.data.train, c.data.val, c.data.test = 'learn', 'choose', 'held_out'
    c.data.shares = (('learn', 0.9), ('choose', 0.05), ('held_out', 0.05))
    c.data.tokenizer = 'bytes'

    c.model.name = 'gpt'
    c.optim.weight_decay = 0.1
    c.optim.clip_norm = (('.*', 1.0),)
    c.optim.lr_end = 0.1

    if variant == 'tiny':
        c.data.tokenizer = str(Path(__file__).with_name('python_bpe2048.json'))
        c.data.length = 128
        c.model.width = 128
        c.model.depth = 3
        c.model.heads = 4
        c.model.context = 128
        c.batch_size = 16
        c.steps = 450
        c.eval_every = 450
        c.optim.name = 'muon'
        c.optim.lr = 0.02
        c.optim.lr_end = 0.0
        c.optim.args.consistent_rms = 0.2
        c.optim.warmup = '5%'
        return c

    # 491,520 tokens a step (nanoGPT's) in eight parts.
    c.data.length = 1024
    c.batch_size = 480
    c.accumulate = 8
    c.precision = 'bfloat16'
    c.steps = 100_000
    c.eval_every = 2000
    c.log_every = 100
    c.optim.args.b2 = 0.95
    c.optim.lr = 6e-4
    c.optim.warmup = '2000 steps'
    return c
