"""Texts with labels as a data set: one list of them (listing.py), or a list per split."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from jaxtrain.data.features import classified_tokens
from jaxtrain.data.sources.listing import Row, open_list
from jaxtrain.data.sources.source import Source, digest
from jaxtrain.data.tokenizer import Tokenizer, open_tokenizer
from jaxtrain.errors import UserError


def open_text(cfg, split: str, key: str, classes: tuple[str, ...]) -> Source:
    """A split of the texts `config.data.path`, which are always kept in memory.

    That is FILE.csv or FILE.jsonl with the columns text, label and (or else each example is dealt
    to a split by its text, so that the same text is never in two of them) split; or a folder with a
    file SPLIT.csv or SPLIT.jsonl per split. Labels are names or integers.

    Args:
      cfg: `config.data`.
      split: the split to open.
      key: the config key or flag that names it, for messages.
      classes: class names by label; () takes those of the data, sorted.

    Raises:
      UserError: see the messages.
    """
    tokenizer = open_tokenizer(cfg.tokenizer)
    check_length(cfg.length)
    found = open_list(cfg, split, key, 'text', classes, lambda file, rows: rows, _content)
    texts = [row.content for row in found.rows]
    source = text_source(texts, found.labels, found.classes, tokenizer, cfg.length)
    labels = [found.classes[label] for label in found.labels]
    return replace(source, digest=digest([tokenizer.definition, *texts], ['', *labels]))


def text_source(
    texts: Sequence[str], labels: Sequence[int], classes: tuple[str, ...], tokenizer: Tokenizer,
    length: int,
) -> Source:  # fmt: skip
    """Texts and their labels as a source of int32 tokens.

    Raises:
      UserError: a tokenizer that has no token to fill shorter texts up with.
    """
    if tokenizer.pad < 0:
        raise UserError(
            "config.data.tokenizer has no token to fill up shorter texts with, such as '[PAD]'; "
            'classes of texts take one that does'
        )
    tokens, cut = _encode(tokenizer, tuple(texts), length)
    known = np.array(labels, np.int32)

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {'tokens': tokens[indices], 'label': known[indices]}

    return Source(
        fetch, len(known), classified_tokens(length), 'tokens', classes, labels=known,
        tokenizer=tokenizer, cut=cut,
    )  # fmt: skip


def check_length(length: int) -> None:
    """UserError unless `config.data.length` leaves room for a token."""
    if length < 1:
        raise UserError(f'config.data.length={length} must be at least 1, the tokens of an example')


def _content(row: Row) -> str:
    return row.content


@lru_cache(maxsize=8)
def _encode(tokenizer: Tokenizer, texts: tuple[str, ...], length: int) -> tuple[np.ndarray, int]:
    # Cached: the seeds and arms of a comparison share their data.
    return tokenizer.encode(texts, length)
