"""Texts with labels as a data set: one list of them (listing.py), or a list per split."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from jaxtrain.data.deal import deal
from jaxtrain.data.examples import Source, check_classes, digest, relabel, require_all
from jaxtrain.data.listing import Row, file_of_split, in_order, of_split, read_list
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
    path = os.path.expanduser(cfg.path)
    whole = not os.path.isdir(path)
    file = path if whole else file_of_split(path, split, key)
    rows = read_list(file, 'text')
    dealt = whole and rows[0].split is None
    if not dealt:
        rows = of_split(rows, split, key, file, whole)
    if not classes:
        classes = in_order({row.label for row in rows})
        check_classes(classes, file)
    labels = relabel(sorted({row.label for row in rows}), classes, file)
    if dealt:
        rows = [rows[i] for i in deal(cfg, [row.content for row in rows], split, key)]
        if split == cfg.train:
            require_all((labels[row.label] for row in rows), classes, key, split)
    return _source(rows, labels, classes, tokenizer, cfg.length)


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
    numbers = np.array(labels, np.int32)

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        return {'tokens': tokens[indices], 'label': numbers[indices]}

    return Source(
        fetch, len(numbers), (length,), classes, labels=numbers, tokenizer=tokenizer, cut=cut
    )


def check_length(length: int) -> None:
    """UserError unless `config.data.length` leaves room for a token."""
    if length < 1:
        raise UserError(f'config.data.length={length} must be at least 1, the tokens of an example')


def _source(
    rows: list[Row], labels: dict[str, int], classes: tuple[str, ...], tokenizer: Tokenizer,
    length: int,
) -> Source:  # fmt: skip
    texts, numbers = [row.content for row in rows], [labels[row.label] for row in rows]
    source = text_source(texts, numbers, classes, tokenizer, length)
    marked = digest([tokenizer.definition, *texts], ['', *(row.label for row in rows)])
    return replace(source, digest=marked)


@lru_cache(maxsize=8)
def _encode(tokenizer: Tokenizer, texts: tuple[str, ...], length: int) -> tuple[np.ndarray, int]:
    # Cached: the seeds and arms of a comparison share their data.
    return tokenizer.encode(texts, length)
