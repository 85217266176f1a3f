"""Tests of lists of texts: tokens and labels, splits, and invalid input."""

import numpy as np
import pytest

from jaxtrain.config import Config, base
from jaxtrain.data.sources.open import open_source
from jaxtrain.data.tokenizer import open_tokenizer
from jaxtrain.errors import UserError
from jaxtrain.weights.bundle import resolve
from tests.support.texts import word_tokenizer, write_list

ROWS = [
    (f'the {animal} {verb} {n}', animal)
    for animal in ('cat', 'dog')
    for verb in ('purrs', 'barks')
    for n in range(30)
]


def config(path, tokenizer, **changes) -> Config:
    settings = {'source': 'text', 'path': str(path), 'length': 6, 'tokenizer': str(tokenizer)}
    changed = {f'data__{name}': value for name, value in {**settings, **changes}.items()}
    return resolve(Config(base().to_dict()).replace(**changed), None)


@pytest.fixture
def words(tmp_path):
    return word_tokenizer(tmp_path / 'words' / 'tokenizer.json')


@pytest.fixture
def source(words):
    def open_split(path, split='train', limit=0, classes=(), tokenizer=words, **changes):
        data = config(path, tokenizer, **changes).data
        return open_source(data, split, f'config.data.{split}', limit, classes)

    return open_split


@pytest.fixture
def fault(source):
    def error_of(*arguments, **options) -> str:
        with pytest.raises(UserError) as caught:
            source(*arguments, **options)
        assert '\n' not in str(caught.value)
        return str(caught.value)

    return error_of


def everything(opened) -> dict[str, np.ndarray]:
    return opened.fetch(np.arange(len(opened)))


def test_tokens_and_labels(source, words, tmp_path):
    rows = [('the cat purrs', 'cat', 'train'), ('dogs', 'dog', 'train'), ('a cat', 'cat', 'val')]
    file = write_list(tmp_path / 'texts.jsonl', rows, ('text', 'label', 'split'))
    opened = source(file)
    assert (opened.shape, opened.classes, len(opened)) == ((6,), ('cat', 'dog'), 2)
    batch = everything(opened)
    expected, _ = open_tokenizer(str(words)).encode(['the cat purrs', 'dogs'], 6)
    np.testing.assert_array_equal(batch['tokens'], expected)
    assert batch['label'].tolist() == [0, 1]
    assert batch.keys() == opened.features.keys()


def test_csv_with_quotes_and_line_breaks(source, tmp_path):
    file = tmp_path / 'texts.csv'
    file.write_text(
        'label,text,split\n1,"the cat, a\ndog ""barks""",train\n10,dogs,train\n2,a,train\n'
    )
    opened = source(file)
    assert opened.classes == ('1', '2', '10')  # in numerical order
    assert everything(opened)['label'].tolist() == [0, 2, 1]


def test_examples_are_assigned_to_splits_by_their_text_alone(source, tmp_path):
    """So no text is in two splits, even if examples are added or reordered."""
    whole = write_list(tmp_path / 'a.jsonl', ROWS)
    parts = {part: source(whole, part) for part in ('train', 'val', 'test')}
    assert sum(map(len, parts.values())) == len(ROWS) and len(parts['train']) > 80
    more = [*reversed(ROWS), ROWS[0], ('a dog sleeps', 'dog')]
    again = source(write_list(tmp_path / 'b.jsonl', more), 'test')

    def rows(opened):
        batch = everything(opened)
        return set(zip(map(tuple, batch['tokens'].tolist()), batch['label'].tolist(), strict=True))

    assert rows(parts['test']) <= rows(again)
    assert len(again) <= len(parts['test']) + 2


def test_a_file_for_each_split(source, fault, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    write_list(tmp_path / 'val.jsonl', ROWS[:7])
    assert len(source(tmp_path)) == len(ROWS)
    assert len(source(tmp_path, 'val', classes=('cat', 'dog'))) == 7
    assert "config.data.test='test'" in fault(tmp_path, 'test')


def test_a_limit_keeps_the_first_examples_of_each_class(source, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    batch = everything(source(tmp_path, limit=3))
    assert batch['label'].tolist() == [0, 0, 0, 1, 1, 1]


def test_labels_refer_to_the_classes_of_the_run(source, fault, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    batch = everything(source(tmp_path, classes=('dog', 'cow', 'cat')))
    assert set(batch['label'].tolist()) == {0, 2}
    assert "class 'cat' is not one of the 2 classes" in fault(tmp_path, classes=('dog', 'cow'))


def test_truncated_texts_are_counted(source, tmp_path):
    write_list(tmp_path / 'train.jsonl', [*ROWS, ('the ' * 20, 'dog')])
    assert source(tmp_path).cut == 1
    assert source(tmp_path, length=3).cut == len(ROWS) + 1


@pytest.mark.parametrize('change', ['text', 'label', 'tokenizer'])
def test_the_digest_changes_with_the_data(change, source, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    before = source(tmp_path).digest
    assert source(tmp_path).digest == before
    options = {}
    if change == 'tokenizer':
        other = word_tokenizer(tmp_path / 'other.json', words=('cat', 'dog'))
        options = {'tokenizer': other}
    else:
        text, label = ROWS[0]
        first = ('other', label) if change == 'text' else (text, 'dog')
        write_list(tmp_path / 'train.jsonl', [first, *ROWS[1:]])
    assert source(tmp_path, **options).digest != before


@pytest.mark.parametrize(
    'line, part',
    [
        ('{"text": "", "label": "a"}', "line 1: text is ''; give some text"),
        ('{"text": 3, "label": "a"}', 'line 1: text is 3; give some text'),
        ('{"text": "b"}', 'line 1: it must be an object with text and label; it has text'),
        ('{"text": "b", "label": ""}', "line 1: label is ''; give a name or an integer"),
        ('{"text": "b", ', 'line 1: it is not JSON'),
        ('', 'is empty; give a line with text and label'),
    ],
)
def test_invalid_lines_are_refused(line, part, fault, tmp_path):
    (tmp_path / 'train.jsonl').write_text(line + '\n')
    message = fault(tmp_path)
    assert f'{tmp_path}/train.jsonl' in message and part in message


def test_wrong_columns_of_a_csv_are_reported(fault, tmp_path):
    (tmp_path / 'train.csv').write_text('words,label\na,b\n')
    assert 'must name the columns text and label' in fault(tmp_path)


def test_a_single_class_is_refused(fault, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS[:5])
    assert "has only the class 'cat'" in fault(tmp_path)


def test_a_missing_file_is_reported(fault, tmp_path):
    assert 'texts.jsonl cannot be read' in fault(tmp_path / 'texts.jsonl')
    assert 'is not a list of examples' in fault(tmp_path / 'texts.txt')


def test_an_empty_tokenizer_is_refused(fault, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    assert 'config.data.tokenizer is empty' in fault(tmp_path, tokenizer='')


def test_a_tokenizer_without_a_padding_token_is_refused(fault, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    assert 'has no token to pad shorter texts' in fault(tmp_path, tokenizer='bytes')


def test_a_length_of_0_is_refused(fault, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    assert 'config.data.length=0 must be at least 1' in fault(tmp_path, length=0)
