"""Lists of texts as data: what arrives, splits, and wrong input."""

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
    def opened(path, split='train', limit=0, classes=(), tokenizer=words, **changes):
        data = config(path, tokenizer, **changes).data
        return open_source(data, split, f'config.data.{split}', limit, classes)

    return opened


@pytest.fixture
def fault(source):
    def said(*arguments, **options) -> str:
        with pytest.raises(UserError) as caught:
            source(*arguments, **options)
        assert '\n' not in str(caught.value)
        return str(caught.value)

    return said


def everything(opened) -> dict[str, np.ndarray]:
    return opened.fetch(np.arange(len(opened)))


def test_tokens_and_labels(source, words, tmp_path):
    rows = [('the cat purrs', 'cat', 'train'), ('dogs', 'dog', 'train'), ('a cat', 'cat', 'val')]
    file = write_list(tmp_path / 'texts.jsonl', rows, ('text', 'label', 'split'))
    opened = source(file)
    assert (opened.shape, opened.classes, len(opened)) == ((6,), ('cat', 'dog'), 2)
    found = everything(opened)
    expected, _ = open_tokenizer(str(words)).encode(['the cat purrs', 'dogs'], 6)
    np.testing.assert_array_equal(found['tokens'], expected)
    assert found['label'].tolist() == [0, 1]
    assert found.keys() == opened.features.keys()


def test_csv_with_quotes_and_line_breaks(source, tmp_path):
    file = tmp_path / 'texts.csv'
    file.write_text(
        'label,text,split\n1,"the cat, a\ndog ""barks""",train\n10,dogs,train\n2,a,train\n'
    )
    opened = source(file)
    assert opened.classes == ('1', '2', '10')  # numbers in their order
    assert everything(opened)['label'].tolist() == [0, 2, 1]


def test_dealt_out_by_the_text_alone(source, tmp_path):
    """So no text is in two splits, whatever is added, and in whatever order."""
    whole = write_list(tmp_path / 'a.jsonl', ROWS)
    parts = {part: source(whole, part) for part in ('train', 'val', 'test')}
    assert sum(map(len, parts.values())) == len(ROWS) and len(parts['train']) > 80
    more = [*reversed(ROWS), ROWS[0], ('a dog sleeps', 'dog')]
    again = source(write_list(tmp_path / 'b.jsonl', more), 'test')

    def rows(opened):
        found = everything(opened)
        return set(zip(map(tuple, found['tokens'].tolist()), found['label'].tolist(), strict=True))

    assert rows(parts['test']) <= rows(again)
    assert len(again) <= len(parts['test']) + 2


def test_a_file_for_each_split(source, fault, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    write_list(tmp_path / 'val.jsonl', ROWS[:7])
    assert len(source(tmp_path)) == len(ROWS)
    assert len(source(tmp_path, 'val', classes=('cat', 'dog'))) == 7
    assert "config.data.test='test'" in fault(tmp_path, 'test')


def test_limit_takes_the_first_of_each_class(source, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    found = everything(source(tmp_path, limit=3))
    assert found['label'].tolist() == [0, 0, 0, 1, 1, 1]


def test_labels_refer_to_the_classes_of_the_run(source, fault, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    found = everything(source(tmp_path, classes=('dog', 'cow', 'cat')))
    assert set(found['label'].tolist()) == {0, 2}
    assert "class 'cat' is not one of the 2 classes" in fault(tmp_path, classes=('dog', 'cow'))


def test_what_is_cut_is_counted(source, tmp_path):
    file = write_list(tmp_path / 'train.jsonl', [*ROWS, ('the ' * 20, 'dog')])
    del file
    assert source(tmp_path).cut == 1
    assert source(tmp_path, length=3).cut == len(ROWS) + 1


@pytest.mark.parametrize('change', ['text', 'label', 'tokenizer'])
def test_digest_tells_when_the_data_changed(change, source, tmp_path):
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
def test_a_line_that_is_wrong(line, part, fault, tmp_path):
    (tmp_path / 'train.jsonl').write_text(line + '\n')
    said = fault(tmp_path)
    assert f'{tmp_path}/train.jsonl' in said and part in said


def test_columns_of_a_csv_are_named_when_they_are_wrong(fault, tmp_path):
    (tmp_path / 'train.csv').write_text('words,label\na,b\n')
    assert 'must name the columns text and label' in fault(tmp_path)


def test_one_class(fault, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS[:5])
    assert "has the one class 'cat'" in fault(tmp_path)


def test_no_file(fault, tmp_path):
    assert 'texts.jsonl cannot be read' in fault(tmp_path / 'texts.jsonl')
    assert 'is not a list of examples' in fault(tmp_path / 'texts.txt')


def test_no_tokenizer(fault, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    assert 'config.data.tokenizer is empty' in fault(tmp_path, tokenizer='')


def test_a_tokenizer_that_cannot_fill_up(fault, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    assert 'has no token to fill up shorter texts' in fault(tmp_path, tokenizer='bytes')


def test_length(fault, tmp_path):
    write_list(tmp_path / 'train.jsonl', ROWS)
    assert 'config.data.length=0 must be at least 1' in fault(tmp_path, length=0)
