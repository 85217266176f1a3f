"""Text to learn a language from: files of it as a stream of tokens, cut into windows."""

import fnmatch
import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxtrain.data.features import continued_tokens
from jaxtrain.data.sources.deal import bounds, deal
from jaxtrain.data.sources.listing import read_text
from jaxtrain.data.sources.source import Source, digest
from jaxtrain.data.sources.text import check_length
from jaxtrain.data.tokenizer import Tokenizer, open_tokenizer
from jaxtrain.errors import UserError, nearest


@dataclass(frozen=True)
class Text:
    """A file of text: what it is called, and what is in it."""

    name: str
    content: str


def open_corpus(cfg, split: str, key: str, classes: tuple[str, ...]) -> Source:
    """A split of the text files `config.data.path`, which is always kept in memory.

    That is a folder of files whose names fit `config.data.pattern`, at any depth: in folders called
    like the splits, or else each file is dealt to one by its path; or a single file, which is cut
    into the splits in the order of `config.data.shares`. The texts of a split are joined, each with
    the tokenizer's end of text, and cut into windows of `config.data.length` tokens, each with the
    token that follows as its target: all but the first of a split are counted, once each.

    Args, raises: as `text.open_text`; `classes` is not used, as there are none.
    """
    del classes
    tokenizer = open_tokenizer(cfg.tokenizer)
    check_length(cfg.length)
    texts = open_texts(cfg, split, key)
    stream = _stream(tokenizer, tuple(texts))
    if len(stream) < 2:
        raise UserError(f'{key}={split!r}: {cfg.path} has no text in it for that split; add some')
    tokens, targets = windows(stream, cfg.length)

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {'tokens': tokens[indices], 'targets': targets[indices]}

    named = digest(
        [tokenizer.definition, *(t.name for t in texts)], ['', *(t.content for t in texts)]
    )
    features = continued_tokens(cfg.length)
    return Source(fetch, len(tokens), features, 'tokens', digest=named, tokenizer=tokenizer)


def open_texts(cfg, split: str, key: str) -> list[Text]:
    """The texts of a split, as they are; args as of `open_corpus`."""
    root = os.path.expanduser(cfg.path)
    if os.path.isfile(root):
        return _part(cfg, root, split, key)
    return _files(cfg, root, split, key)


def windows(stream: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens in a row -> (tokens, targets), int32 [windows, length].

    The last window is filled up with token 0, whose targets are -1.
    """
    count = -(-(len(stream) - 1) // length)
    spare = count * length - (len(stream) - 1)
    tokens = np.pad(stream[:-1], (0, spare)).reshape(count, length)
    targets = np.pad(stream[1:], (0, spare), constant_values=-1).reshape(count, length)
    return tokens.astype(np.int32), targets.astype(np.int32)


def _files(cfg, root: str, split: str, key: str) -> list[Text]:
    if not os.path.isdir(root):
        raise UserError(
            f"config.data.path={cfg.path!r} does not exist; for source='corpus' name a file of "
            'text, or a folder of them'
        )
    folders = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    if folders & {cfg.train, cfg.val, cfg.test} - {''}:
        if split not in folders:
            raise UserError(
                f'{key}={split!r}: {root} has no folder of that name{nearest(split, folders)}; it '
                f'has {", ".join(sorted(folders))}'
            )
        root = os.path.join(root, split)
        names = text_files(root, cfg.pattern, cfg.skip_folders)
    else:
        names = text_files(root, cfg.pattern, cfg.skip_folders)
        names = [names[i] for i in deal(cfg, names, split, key)]
    return [Text(name, read_text(os.path.join(root, name))) for name in names]


def text_files(root: str, pattern: str, skip_folders: Collection[str] = ()) -> list[str]:
    """Paths of the files in a folder whose names fit a pattern, relative to it and sorted; hidden
    ones, and what lies in folders of some names, are left out. UserError if there are none.
    """
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f[:1] != '.' and f not in skip_folders)
        fit = fnmatch.filter((f for f in files if not f.startswith('.')), pattern)
        found += [os.path.relpath(os.path.join(folder, name), root) for name in fit]
    if not found:
        raise UserError(
            f'{root} holds no file {pattern}; add some, or set config.data.pattern to their names'
        )
    return sorted(found)


def _part(cfg, file: str, split: str, key: str) -> list[Text]:
    """The stretch of a single file that belongs to a split, from the start of a line to another."""
    text = read_text(file)
    low, high = (_line_start(text, share) for share in bounds(cfg.shares, split, key))
    return [Text(split, text[low:high])]


def _line_start(text: str, share: float) -> int:
    """Where the first line begins that is not before this share of the text."""
    at = round(share * len(text))
    if at in (0, len(text)):
        return at
    return text.find('\n', at - 1) + 1 or len(text)


@lru_cache(maxsize=8)
def _stream(tokenizer: Tokenizer, texts: tuple[Text, ...]) -> np.ndarray:
    # Cached: the seeds and arms of a comparison share their data.
    return tokenizer.stream([text.content for text in texts if text.content])
