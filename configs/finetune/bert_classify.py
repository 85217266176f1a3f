"""Fine-tune: BERT or a sentence encoder with a new head, to classify your texts.

    jaxtrain import huggingface MODEL_FOLDER --model=minilm_l6 --workdir=runs/minilm
    jaxtrain train --config=configs/finetune/bert_classify.py --workdir=runs/topics
    jaxtrain predict --workdir=runs/topics more_texts.jsonl

MODEL_FOLDER holds the files model.safetensors, config.json and tokenizer.json of
sentence-transformers/all-MiniLM-L6-v2 or bert-base-uncased (--model=bert_base) from the Hugging
Face Hub. Each line of the file `texts.jsonl` (--config.data.path names another file, which may also
be a .csv) has a `text` and a `label`; the lines are divided 80:10:10 unless they have a `split`.
The tokenizer is that of the model.

The variant `linear` trains only the head, on frozen embeddings; `scratch` trains the same network
from random parameters.

    jaxtrain compare --config=configs/finetune/bert_classify.py --workdir=runs/topics_compared

Test accuracy of all-MiniLM-L6-v2 on docstrings of Python 3.11, classified by their package, one of
ten in the standard library (tests/support/texts.py; 12 examples of each, 64 tokens, 60 steps of 12;
three seeds, 400 test examples, 95% intervals; learning rates chosen on val):

variant   accuracy
finetune  62.0% [57.3, 66.5]
linear    61.3% [56.4, 66.0]
scratch   39.9% [35.3, 44.7]

The time on an accelerator was not measured.
"""

from jaxtrain.config import base, known_variant


def get_config(variant: str = 'finetune'):
    known_variant(variant, ('finetune', 'linear', 'scratch'))
    c = base()
    c.regime = 'finetune'
    c.data.source = 'text'
    c.data.path = 'texts.jsonl'
    c.data.length = 128
    c.batch_size = 32
    c.epochs = 10.0
    c.every = 'epochs'
    c.log_every = 1
    c.eval_every = 1

    c.model.name = ''  # that of the weights
    c.init_from = 'runs/minilm'
    c.restore.rules = (('head/.*', 'init'), ('.*', 'load'))

    c.optim.lr = 1e-4
    c.optim.warmup = '20 steps'
    c.optim.weight_decay = 0.01
    c.optim.clip_norm = (('.*', 1.0),)
    # A random head needs a higher learning rate than the pretrained layers below it.
    c.optim.lr_mult = (('head/.*', 10.0), ('.*', 1.0))
    if variant == 'linear':
        c.groups = (('backbone/.*', 'frozen'), ('head/.*', 'head'))
        c.optim.lr = 1e-2
        c.optim.lr_mult = (('.*', 1.0),)
    if variant == 'scratch':
        c.regime = 'scratch'
        c.restore.rules = (('.*', 'init'),)
        c.optim.lr = 3e-4
        c.optim.lr_mult = (('.*', 1.0),)

    c.compare.pretrain = ''
    c.compare.arms = ('scratch', 'linear', 'finetune')
    c.compare.seeds = 3
    return c
