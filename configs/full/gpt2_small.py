"""Full: the smallest GPT-2, from random parameters, on text files.

    jaxtrain train --config=configs/full/gpt2_small.py --workdir=runs/gpt2_small
    jaxtrain train --config=configs/full/gpt2_small.py --config.data.path=texts --config.data.pattern='*.txt' --config.data.skip_folders='()' --config.data.tokenizer=tokenizer.json --workdir=runs/my_gpt2

The sizes are those of GPT-2 (Radford et al. 2019), and the recipe is that of
github.com/karpathy/nanoGPT: AdamW at 6e-4 with b2=0.95, weight decay of 0.1 on kernels, gradients
clipped to a norm of 1, no dropout, half a million tokens per step, a warm-up of 2,000 steps and
then cosine decay to a tenth, in bfloat16. The loss published there, with GPT-2's tokenizer on
OpenWebText, is 2.85 nats after 600,000 steps. It was not measured here. By default the data is the
source code of Python's standard library (10 MB, files divided 90:5:5) as bytes; with GPT-2's
tokenizer.json the model has 124,439,808 parameters.

    jaxtrain train --config=configs/full/gpt2_small.py:tiny --workdir=runs/gpt2_tiny

The variant tiny is a small model for that library, trained by Muon, with a tokenizer of 2,048 byte
pairs (tests/golden/make_python_bpe.py). On held-out files it measured 1.54 (expect
1.40 to 1.60 bits per byte) after 115 s on 2 cores of an x86-64 server CPU. The same files,
concatenated, take 1.86 bits per byte with gzip -9 and 1.55 with xz -9 (Python 3.11.7); unlike the
model, these have not seen the other files.
"""  # noqa: E501

import sysconfig
from pathlib import Path

from jaxtrain.config import base, known_variant


def get_config(variant: str = 'small'):
    known_variant(variant, ('small', 'tiny'))
    c = base()
    c.regime = 'full'
    c.task.name = 'lm'

    # Python's own library, whose files are divided by their paths. The splits have unusual names
    # because a folder of the library is called test.
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

    # 491,520 tokens per step, as in nanoGPT, in eight parts.
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
