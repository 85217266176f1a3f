"""The source 'text': labelled texts in a list (listing.py), or in a list per split."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from jaxtrain.data.features import classified_tokens
from jaxtrain.data.sources.listing import Column
from jaxtrain.data.sources.source import Source, digest
from jaxtrain.data.tokenizer import Tokenizer, open_tokenizer
from jaxtrain.errors import UserError


def open_text(cfg, split: str, key: str, classes: tuple[str, ...]) -> Source:
    """Open a split of the texts in `config.data.path`, which are always kept in memory.

    The path is FILE.csv or FILE.jsonl with the columns text, label and optionally split (without
    it, each example is assigned to a split by its text, so that equal texts are in the same split);
    or a folder with a file SPLIT.csv or SPLIT.jsonl per split. Labels are names or integers.

    Args, Raises: As in `folder.open_folder`.
    """
    tokenizer = open_tokenizer(cfg.tokenizer)
    check_length(cfg.length)
    listed = Column('text').open(cfg, split, key, classes)
    texts = [row.content for row in listed.rows]
    source = text_source(texts, listed.labels, listed.classes, tokenizer, cfg.length)
    labels = [listed.classes[label] for label in listed.labels]
    return replace(source, digest=digest([tokenizer.definition, *texts], ['', *labels]))


def text_source(
    texts: Sequence[str], labels: Sequence[int], classes: tuple[str, ...], tokenizer: Tokenizer,
    length: int,
) -> Source:  # fmt: skip
    """Return a source of int32 tokens of texts, with their labels.

    Raises:
      UserError: If the tokenizer has no padding token.
    """
    if tokenizer.pad < 0:
        raise UserError(
            "config.data.tokenizer has no token to pad shorter texts with, such as '[PAD]'; "
            'give one that has, which text classification requires'
        )
    tokens, truncated = _encode(tokenizer, tuple(texts), length)
    label_array = np.array(labels, np.int32)

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {'tokens': tokens[indices], 'label': label_array[indices]}

    return Source(
        fetch, len(label_array), classified_tokens(length), 'tokens', classes, labels=label_array,
        tokenizer=tokenizer, cut=truncated, random=False,
    )  # fmt: skip


def check_length(length: int) -> None:
    """Raise UserError unless `config.data.length` is at least 1."""
    if length < 1:
        raise UserError(f'config.data.length={length} must be at least 1 token per example')


@lru_cache(maxsize=8)
def _encode(tokenizer: Tokenizer, texts: tuple[str, ...], length: int) -> tuple[np.ndarray, int]:
    # Cached: the seeds and arms of a comparison share their data.
    return tokenizer.encode(texts, length)
