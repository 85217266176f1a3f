"""The source 'corpus': text files for language modelling, as windows of a token stream."""

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
    """The name and content of a text file."""

    name: str
    content: str


def open_corpus(cfg, split: str, key: str, classes: tuple[str, ...]) -> Source:
    """Open a split of the text files in `config.data.path`, which is always kept in memory.

    The path is a folder or a file. In a folder, all files at any depth whose names match
    `config.data.pattern` are used: they are split by top-level folders named like the splits, or
    otherwise each file is assigned to a split by its path. A single file is divided into the splits
    in the order of `config.data.shares`. The texts of a split are concatenated, each followed by
    the tokenizer's end token, and divided into windows of `config.data.length` tokens. The target
    of each token is the next one, so every token of a split but the first is predicted once.

    Args, Raises: As in `text.open_text`; `classes` is unused, because there are no classes.
    """
    del classes
    tokenizer = open_tokenizer(cfg.tokenizer)
    check_length(cfg.length)
    texts = open_texts(cfg, split, key)
    stream = _stream(tokenizer, tuple(texts))
    if len(stream) < 2:
        raise UserError(f'{key}={split!r}: {cfg.path} has no text for that split; add some')
    tokens, targets = windows(stream, cfg.length)

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {'tokens': tokens[indices], 'targets': targets[indices]}

    checksum = digest(
        [tokenizer.definition, *(t.name for t in texts)], ['', *(t.content for t in texts)]
    )
    features = continued_tokens(cfg.length)
    return Source(
        fetch, len(tokens), features, 'tokens', digest=checksum, tokenizer=tokenizer, random=False
    )


def open_texts(cfg, split: str, key: str) -> list[Text]:
    """Return the raw texts of a split; the arguments are those of `open_corpus`."""
    root = os.path.expanduser(cfg.path)
    if os.path.isfile(root):
        return _part(cfg, root, split, key)
    return _files(cfg, root, split, key)


def windows(stream: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide a stream of tokens into (tokens, targets), int32 [windows, length].

    The last window is padded with token 0 and the target -1.
    """
    count = -(-(len(stream) - 1) // length)
    padding = count * length - (len(stream) - 1)
    tokens = np.pad(stream[:-1], (0, padding)).reshape(count, length)
    targets = np.pad(stream[1:], (0, padding), constant_values=-1).reshape(count, length)
    return tokens.astype(np.int32), targets.astype(np.int32)


def _files(cfg, root: str, split: str, key: str) -> list[Text]:
    if not os.path.isdir(root):
        raise UserError(
            f"config.data.path={cfg.path!r} does not exist; for source='corpus' give a text "
            'file, or a folder of text files'
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
    """Return the sorted relative paths of the files under a folder whose names match a pattern.

    Hidden files and folders are omitted, and so are folders named in `skip_folders`.

    Raises:
      UserError: If there are no such files.
    """
    paths = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f[:1] != '.' and f not in skip_folders)
        matches = fnmatch.filter((f for f in files if not f.startswith('.')), pattern)
        paths += [os.path.relpath(os.path.join(folder, name), root) for name in matches]
    if not paths:
        raise UserError(
            f'{root} holds no file {pattern}; add some, or set config.data.pattern to their names'
        )
    return sorted(paths)


def _part(cfg, file: str, split: str, key: str) -> list[Text]:
    """Return the part of a single file that belongs to a split, in whole lines."""
    text = read_text(file)
    low, high = (_line_start(text, share) for share in bounds(cfg.shares, split, key))
    return [Text(split, text[low:high])]


def _line_start(text: str, share: float) -> int:
    """Return the start of the first line at or after this share of the text."""
    at = round(share * len(text))
    if at in (0, len(text)):
        return at
    return text.find('\n', at - 1) + 1 or len(text)


@lru_cache(maxsize=8)
def _stream(tokenizer: Tokenizer, texts: tuple[Text, ...]) -> np.ndarray:
    # Cached: the seeds and arms of a comparison share their data.
    return tokenizer.stream([text.content for text in texts if text.content])
