"""Tokenizers: text to numbers and back, by Hugging Face's library and its tokenizer.json."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from jaxtrain import storage
from jaxtrain.errors import UserError

if TYPE_CHECKING:
    import tokenizers

BYTES = 'bytes'  # a token for each byte of UTF-8, and one more that ends a text
END_OF_TEXT = '<|endoftext|>'
# What pads and ends are called where the file does not say.
PADS = ('[PAD]', '<pad>', '<|pad|>')
ENDS = (END_OF_TEXT, '</s>', '<|end_of_text|>', '<eos>', '[SEP]')


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as plain data; the library's object is made from it when it is used.

    Attributes:
      definition: the content of tokenizer.json.
      size: how many tokens there are; all are less than it.
      pad: the token that fills up shorter texts, -1 for none.
      end: the token that ends a text, -1 for none.
    """

    definition: str
    size: int
    pad: int
    end: int

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, int]:
        """Texts as they stand by themselves, with the tokens that the model wants around them.

        Args:
          texts: what to encode.
          length: tokens of each; longer ones lose their end, shorter ones are filled up.

        Returns:
          (int32 [texts, length], how many were cut).
        """
        library = _library(self.definition)
        library.enable_truncation(length)
        library.enable_padding(length=length, pad_id=self.pad)
        found = library.encode_batch(list(texts))
        rows = np.array([row.ids for row in found], np.int32).reshape(-1, length)
        return rows, sum(bool(row.overflowing) for row in found)

    def stream(self, texts: Sequence[str]) -> np.ndarray:
        """All texts one after the other, each with the token that ends it; int32 [tokens]."""
        found = self.pieces(texts)
        end = [self.end] if self.end >= 0 else []
        parts = [np.array([*ids, *end], np.int32) for ids in found]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's own tokens, and none around them."""
        library = _library(self.definition)
        library.no_truncation()
        library.no_padding()
        # Fast: without the places of tokens in the text, which takes a fifth of the time.
        rows = library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [row.ids for row in rows]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; those that end or pad one are left out."""
        return _library(self.definition).decode(list(map(int, tokens)))


def open_tokenizer(name: str, key: str = 'config.data.tokenizer') -> Tokenizer:
    """The tokenizer that a config names.

    Args:
      name: a tokenizer.json, the folder of one, or 'bytes'.
      key: what names it, for messages.

    Raises:
      UserError: no name, no such file, or one that is none.
    """
    definition = read_definition(name, key)
    try:
        library = _library(definition)
    except Exception as error:  # the library raises plain Exceptions
        raise UserError(
            f'{key}={name!r} is no tokenizer.json ({error}); give the file that goes with the '
            'weights, as Hugging Face keeps it'
        ) from error
    ids = library.get_vocab(with_added_tokens=True)
    if not ids:
        raise UserError(f'{key}={name!r} has no tokens; give the file that goes with the weights')
    padding = json.loads(definition).get('padding') or {}
    return Tokenizer(
        definition=definition,
        size=max(ids.values()) + 1,
        pad=padding.get('pad_id', _first(ids, PADS)),
        end=_first(ids, ENDS),
    )


def read_definition(name: str, key: str = 'config.data.tokenizer') -> str:
    """The content of the tokenizer.json of that name. UserError if there is none."""
    if not name:
        raise UserError(
            f'{key} is empty, and no weights in config.init_from bring a tokenizer; name a '
            f"tokenizer.json, or '{BYTES}'"
        )
    if name == BYTES:
        return _bytes().to_str()
    path = storage.path(os.path.expanduser(name))
    path = path / 'tokenizer.json' if path.is_dir() else path
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'it is not UTF-8'
        raise UserError(
            f"{key}={name!r} cannot be read ({reason}); name a tokenizer.json, or '{BYTES}'"
        ) from error


def _bytes() -> 'tokenizers.Tokenizer':
    """GPT-2's alphabet of bytes, with no pairs merged."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END_OF_TEXT])
    return made


@lru_cache(maxsize=4)
def _library(definition: str) -> 'tokenizers.Tokenizer':
    import tokenizers

    return tokenizers.Tokenizer.from_str(definition)


def _first(ids: dict[str, int], names: Sequence[str]) -> int:
    return next((ids[name] for name in names if name in ids), -1)
