"""Fine-tune: GPT-2, trained further on your text files.

    jaxtrain import huggingface GPT2_FOLDER --model=gpt2 --workdir=runs/gpt2
    jaxtrain train --config=configs/finetune/gpt2_text.py --workdir=runs/my_gpt2
    jaxtrain predict --workdir=runs/my_gpt2 prompts.txt

GPT2_FOLDER holds the files model.safetensors, config.json and tokenizer.json of `gpt2` from the
Hugging Face Hub. The folder `texts` (--config.data.path names another) holds .txt files, which are
divided 80:10:10 by name and split into windows of 512 tokens. The loss is in nats per token.

The recipe is AdamW at a small learning rate with cosine decay, and weight decay for kernels only;
all layers are trained. The variant `top` trains the last two of twelve blocks and the last norm,
which is 14,177,280 of 124,439,808 parameters, with 11% of the optimizer's memory:

    jaxtrain train --config=configs/finetune/gpt2_text.py:top --workdir=runs/my_gpt2_top

The expected loss depends on your texts. It was not measured, because the project includes no such
weights.
"""

from jaxtrain.config import base, known_variant


def get_config(variant: str = 'all'):
    known_variant(variant, ('all', 'top'))
    c = base()
    c.regime = 'finetune'
    c.task.name = 'lm'
    c.data.source = 'corpus'
    c.data.path = 'texts'
    c.data.length = 512
    c.batch_size = 8
    c.epochs = 3.0
    c.every = 'epochs'
    c.eval_every = 1

    c.model.name = ''  # that of the weights
    c.init_from = 'runs/gpt2'

    c.optim.lr = 5e-5
    c.optim.warmup = '100 steps'
    c.optim.weight_decay = 0.01
    c.optim.clip_norm = (('.*', 1.0),)
    if variant == 'top':
        c.groups = (
            (r'backbone/block_1[01]/.*', 'top'),
            ('backbone/norm/.*', 'top'),
            ('.*', 'frozen'),
        )
        c.optim.lr = 2e-4
    return c
