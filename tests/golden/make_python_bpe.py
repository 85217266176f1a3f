"""Makes configs/full/python_bpe2048.json, the tokenizer of gpt2_small.py:tiny.

    python -m tests.golden.make_python_bpe

The byte pairs are those of the config's training files (Python 3.11.7's library), and of no others.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxtrain.config.files import load
from jaxtrain.data.sources.corpus import open_texts

CONFIGS = Path(__file__).parents[2] / 'configs' / 'full'
SIZE = 2048


def main() -> None:
    data = load(f'{CONFIGS}/gpt2_small.py', []).data
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=['<|endoftext|>'],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = open_texts(data, data.train, 'config.data.train')
    made.train_from_iterator([text.content for text in texts], trainer)
    content = json.dumps(json.loads(made.to_str()), ensure_ascii=False, separators=(',', ':'))
    (CONFIGS / f'python_bpe{SIZE}.json').write_text(content + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
