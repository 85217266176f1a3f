"""Tests of tokenizers: ids of words and bytes, and files that are not tokenizers."""

import numpy as np
import pytest

from jaxtrain.data.tokenizer import open_tokenizer
from jaxtrain.errors import UserError
from tests.support.texts import SPECIAL, WORDS, word_tokenizer

NUMBERS = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}


@pytest.fixture
def words(tmp_path):
    return open_tokenizer(str(word_tokenizer(tmp_path / 'tokenizer.json')))


def fault(*arguments) -> str:
    with pytest.raises(UserError) as caught:
        open_tokenizer(*map(str, arguments))
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_texts_become_rows_of_equal_length(words):
    rows, truncated = words.encode(['the cat purrs', 'dogs'], 6)
    expected = [
        ['[CLS]', 'the', 'cat', 'purrs', '[SEP]', '[PAD]'],
        ['[CLS]', 'dogs', '[SEP]', '[PAD]', '[PAD]', '[PAD]'],
    ]
    assert rows.dtype == np.int32 and truncated == 0
    assert rows.tolist() == [[NUMBERS[word] for word in row] for row in expected]


def test_longer_texts_are_truncated_and_counted(words):
    rows, truncated = words.encode(['the cat purrs loudly', 'the cat purrs', 'dogs'], 4)
    assert truncated == 2
    assert [NUMBERS['[SEP]'] in row for row in rows.tolist()] == [True] * 3
    assert rows[0].tolist() == rows[1].tolist()


def test_a_call_does_not_affect_the_next_one(words):
    """The library keeps its settings between calls."""
    words.encode(['the cat purrs loudly'], 3)
    assert words.pieces(['the cat purrs loudly']) == [
        [NUMBERS[word] for word in ('the', 'cat', 'purrs', 'loudly')]
    ]


def test_a_stream_has_an_end_token_after_each_text(words):
    assert words.end == NUMBERS['[SEP]'] and words.pad == NUMBERS['[PAD]']
    stream = words.stream(['a cat', 'a dog'])
    names = ['a', 'cat', '[SEP]', 'a', 'dog', '[SEP]']
    assert stream.tolist() == [NUMBERS[name] for name in names]


def test_the_size_is_one_more_than_the_largest_id(words):
    assert words.size == len(SPECIAL) + len(WORDS)


@pytest.mark.parametrize('text', ['plain', 'naïve – 东京 \U0001f600', '\x00\t\r\n', ''])
def test_bytes_are_decoded_to_the_original_text(text):
    tokenizer = open_tokenizer('bytes')
    (tokens,) = tokenizer.pieces([text])
    assert len(tokens) == len(text.encode()) and tokenizer.size == 257 and tokenizer.end == 256
    assert tokenizer.decode(tokens) == text


def test_every_byte_has_a_distinct_token():
    tokenizer = open_tokenizer('bytes')
    texts = [chr(i) for i in range(128)]
    tokens = [t for row in tokenizer.pieces(texts) for t in row]
    assert len(set(tokens)) == 128 and max(tokens) < 256


def test_the_end_of_a_text_is_not_decoded():
    tokenizer = open_tokenizer('bytes')
    assert tokenizer.decode([*tokenizer.pieces(['ab'])[0], tokenizer.end]) == 'ab'


def test_a_folder_opens_the_file_in_it(tmp_path):
    file = word_tokenizer(tmp_path / 'tokenizer.json')
    assert open_tokenizer(str(tmp_path)) == open_tokenizer(str(file))


def test_an_empty_name_is_refused():
    message = fault('')
    assert message.startswith('config.data.tokenizer is empty, and no weights in config.init_from')
    assert "name a tokenizer.json, or 'bytes'" in message


def test_a_missing_file_is_reported(tmp_path):
    assert f"config.data.tokenizer='{tmp_path}/t.json' cannot be read" in fault(tmp_path / 't.json')


@pytest.mark.parametrize(
    'content', [b'', b'{}', b'[1, 2', b'{"model": {"type": "X"}}', b'\xff\xfe']
)
def test_a_file_that_is_not_a_tokenizer_is_reported(content, tmp_path):
    (tmp_path / 't.json').write_bytes(content)
    assert f"config.data.tokenizer='{tmp_path}/t.json'" in fault(tmp_path / 't.json')


def test_padding_uses_the_pad_token_of_the_tokenizer(tmp_path):
    file = word_tokenizer(tmp_path / 't.json', special=('[UNK]', '[PAD]'))
    tokenizer = open_tokenizer(str(file))
    assert tokenizer.pad == 1
    assert tokenizer.encode(['a cat'], 4)[0].tolist() == [[2, 3, 1, 1]]
