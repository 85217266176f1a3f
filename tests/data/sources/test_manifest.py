"""Tests of manifests in CSV and JSON Lines: split columns, files per split, assigned splits."""

import json
import os

import numpy as np
import pytest

from jaxtrain.data.sources.open import open_source
from jaxtrain.errors import UserError
from tests.data.sources.test_folder import config, examples, image, unread, write
from tests.data.sources.test_folder import source as folder

ROWS = tuple((f'pics/{i}.png', ('cat', 'dog')[i % 2]) for i in range(60))


def source(path, split='train', limit=0, classes=(), key='config.data.train', **changes):
    cfg = config(path, source='manifest', **changes)
    return open_source(cfg.data, split, key, limit, classes)


def fault(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        source(*arguments, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def table(path, rows, columns=('path', 'label')):
    """Write rows in the format of the suffix."""
    if path.suffix == '.csv':
        lines = [','.join(map(str, row)) for row in (columns, *rows)]
    else:
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    path.write_text('\n'.join(lines) + '\n')
    return path


def labelled(rows) -> dict[bytes, str]:
    return {image(row[0]).tobytes(): str(row[1]) for row in rows}


@pytest.fixture
def root(tmp_path):
    return write(tmp_path, *(name for name, _ in ROWS))


@pytest.mark.parametrize('suffix', ['csv', 'jsonl'])
def test_without_a_split_column_every_example_is_in_one_split(suffix, root):
    file = table(root / f'all.{suffix}', ROWS)
    parts = [examples(source(file, part)) for part in ('train', 'val', 'test')]
    assert parts[0] | parts[1] | parts[2] == labelled(ROWS)
    assert sum(map(len, parts)) == len(ROWS) and len(parts[0]) > 40


def test_splits_are_those_of_the_same_files_in_folders(tmp_path):
    names = [f'{name}/{i}.png' for name in ('cat', 'dog') for i in range(40)]
    write(tmp_path / 'pets', *names)
    file = table(tmp_path / 'pets' / 'all.csv', [(name, name[:3]) for name in reversed(names)])
    for part in ('train', 'val', 'test'):
        assert examples(source(file, part)) == examples(folder(tmp_path / 'pets', part))


def test_splits_do_not_depend_on_the_location(root, tmp_path_factory):
    moved = write(tmp_path_factory.mktemp('moved'), *(name for name, _ in ROWS))
    one, other = table(root / 'a.csv', ROWS), table(moved / 'b.jsonl', ROWS)
    full = table(root / 'c.csv', [(root / name, label) for name, label in ROWS])
    sources = [source(file, 'test') for file in (one, other, full)]
    assert examples(sources[0]) == examples(sources[1]) == examples(sources[2])
    assert sources[0].digest == sources[1].digest == sources[2].digest


def test_the_digest_depends_on_the_labels_but_not_on_the_order(root):
    digests = [
        source(table(root / f'{number}.csv', rows), shares=(('train', 1.0),)).digest
        for number, rows in enumerate((ROWS, ROWS[::-1], [*ROWS[:-1], (ROWS[-1][0], 'cat')]))
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize('suffix', ['csv', 'jsonl'])
def test_the_split_column_selects_the_rows(suffix, root):
    parts = [(*row, 'train' if i < 35 else 'held out') for i, row in enumerate(ROWS)]
    file = table(root / f'all.{suffix}', parts, ('path', 'label', 'split'))
    assert examples(source(file)) == labelled(ROWS[:35])
    assert examples(source(file, 'held out')) == labelled(ROWS[35:])


@pytest.mark.parametrize('suffix', ['csv', 'jsonl'])
def test_a_file_for_each_split(suffix, root):
    table(root / f'train.{suffix}', ROWS[:35])
    table(root / f'val.{suffix}', ROWS[35:])
    assert examples(source(root)) == labelled(ROWS[:35])
    assert examples(source(root, 'val')) == labelled(ROWS[35:])


def test_examples_keep_the_order_of_the_lines(root):
    rows = ROWS[::-1]
    table(root / 'train.csv', rows)
    batch = source(root).fetch(np.arange(len(rows)))
    np.testing.assert_array_equal(batch['image'], [image(name) for name, _ in rows])
    assert batch['label'].tolist() == [i % 2 for i in range(60)][::-1]


@pytest.mark.parametrize(
    ('labels', 'classes'),
    [
        (('10', '9', '-1'), ('-1', '9', '10')),
        (('10', '9', 'x'), ('10', '9', 'x')),
        (('01', '1', '2'), ('01', '1', '2')),
    ],
)
def test_classes_are_sorted_as_numbers_if_all_are(labels, classes, root):
    rows = [(name, labels[i % 3]) for i, (name, _) in enumerate(ROWS)]
    table(root / 'train.csv', rows)
    opened = source(root)
    assert opened.classes == classes and examples(opened) == labelled(rows)


def test_integer_labels_in_jsonl(root):
    rows = [(name, 5 * (i % 3)) for i, (name, _) in enumerate(ROWS)]
    table(root / 'train.jsonl', rows)
    assert source(root).classes == ('0', '5', '10') and examples(source(root)) == labelled(rows)


def test_labels_refer_to_the_classes_of_the_run(root):
    table(root / 'val.csv', ROWS)
    opened = source(root, 'val', classes=('owl', 'dog', 'cat'))
    assert examples(opened) == labelled(ROWS) and set(opened.labels.tolist()) == {1, 2}
    message = fault(root, 'val', classes=('owl', 'cat'))
    assert "class 'dog' is not one of the 2 classes that the run trains on" in message


def test_quotes_spaces_and_further_columns(root):
    names = ['pics/a, b.png', 'pics/c.png', 'pics/d "e".png']
    write(root, *names)
    text = '\ufeffid, path , label\r\n1, "pics/a, b.png",cat\r\n\r\n2, pics/c.png , dog\r\n'
    (root / 'train.csv').write_text(text + '3,"pics/d ""e"".png",cat', newline='')
    expected = labelled(zip(names, ('cat', 'dog', 'cat'), strict=True))
    assert examples(source(root)) == expected


def test_byte_order_mark_blank_lines_and_line_separators_in_jsonl(root):
    names = ['pics/\u2028a.png', 'pics/b.png']
    write(root, *names)
    lines = [
        json.dumps({'path': name, 'label': label, 'n': 1}, ensure_ascii=False)
        for name, label in zip(names, 'xy', strict=True)
    ]
    (root / 'train.jsonl').write_text('\ufeff' + '\r\n\n'.join(lines), newline='')
    assert examples(source(root)) == labelled(zip(names, 'xy', strict=True))


@pytest.mark.parametrize('memory_mib', [0, 2048])
def test_a_limit_keeps_the_first_examples_of_each_class(root, memory_mib):
    table(root / 'train.csv', ROWS)
    assert examples(source(root, limit=3, memory_mib=memory_mib)) == labelled(ROWS[:6])


def test_unreadable_and_missing_images_are_skipped(root):
    table(root / 'train.csv', ROWS)
    (root / ROWS[4][0]).write_bytes(b'text')
    os.remove(root / ROWS[7][0])
    opened = source(root, on_bad_image='skip')
    assert examples(opened) == labelled([row for i, row in enumerate(ROWS) if i not in (4, 7)])
    assert opened.skipped == tuple(str(root / ROWS[i][0]) for i in (4, 7))


CSV = 'path,label\npics/0.png,cat\npics/1.png,dog\n'
LINES = ['{"path": "pics/0.png", "label": 0}', '{"path": "pics/1.png", "label": 1}']
JSONL = '\n'.join(LINES)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'train.csv is empty; give a line with path and label for each'),
        ('path,label\n', 'train.csv is empty'),
        (
            'file,label\na.png,cat\n',
            'train.csv: its first line must name the columns path and label, separated by commas, '
            'once each; it has file, label',
        ),
        ('path;label\na;b\n', 'separated by commas, once each; it has path;label'),
        ('path,label,label\na,b,c\n', 'once each; it has path, label, label'),
        (CSV + 'pics/2.png\n', 'train.csv, line 4: it does not have 2 fields, as the first line'),
        (
            CSV + 'pics/2.png,a,b\n',
            'line 4: it does not have 2 fields, as the first line does; put',
        ),
        (CSV + 'pics/2.png,\n', "line 4: label is ''; give a name or an integer"),
        (CSV + ',cat\n', "line 4: path is ''; give a name"),
        (CSV + '"pics/2.png,cat\n', 'train.csv, line 4: unexpected end of data; fix the line'),
        (CSV + 'pics/9x.png,cat\n', 'train.csv, line 4: there is no image '),
        (CSV + 'pics/../pics/1.png,cat\n', 'line 4: pics/1.png is in line 3 already; remove one'),
        ('path,label\npics/0.png,cat\n', "has only the class 'cat'"),
    ],
)
def test_invalid_csv_is_refused(text, words, root):
    (root / 'train.csv').write_text(text)
    assert words in fault(root)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('\n', 'train.jsonl is empty'),
        (JSONL + '\n{"path": 1', 'train.jsonl, line 3: it is not JSON ('),
        (JSONL + '\n["a", "b"]', 'line 3: it must be an object with path and label; it has no ke'),
        (JSONL + '\n\n{"path": "a", "lable": 1}', 'line 4: it must be an object with path and la'),
        (JSONL + '\n{"path": "a", "label": 1.5}', 'line 3: label is 1.5; give a name or an integ'),
        (JSONL + '\n{"path": "a", "label": true}', 'line 3: label is True; give a name or an in'),
        (JSONL + '\n{"path": null, "label": 1}', 'line 3: path is None; give a name'),
        (
            JSONL + '\n{"path": "pics/2.png", "label": 1, "split": "train"}',
            'line 3: give a split in every line, or in none',
        ),
        (
            LINES[0][:-1] + ', "split": "val"}',
            "train.jsonl has lines of the split 'val'; move them to their own file",
        ),
    ],
)
def test_invalid_jsonl_is_refused(text, words, root):
    (root / 'train.jsonl').write_text(text)
    assert words in fault(root)


def test_a_missing_split_is_reported(root):
    file = table(root / 'all.csv', [(*ROWS[0], 'train'), (*ROWS[1], 'valid')],
                 ('path', 'label', 'split'))  # fmt: skip
    message = fault(file, 'val', key='config.data.val')
    for part in ("config.data.val='val'", "'valid'", 'it has train, valid'):
        assert part in message, message
    (root / 'valid.csv').write_text(CSV)
    message = fault(root, 'val', key='--split')
    for part in ("--split='val'", f'{root} has no val.csv or val.jsonl', "'valid'"):
        assert part in message, message
    assert 'it has all.csv, valid.csv' in message


def test_two_manifests_for_a_split_are_refused(root):
    (root / 'train.csv').write_text(CSV)
    (root / 'train.jsonl').write_text(JSONL)
    assert 'has both train.csv and train.jsonl; remove one of them' in fault(root)


def test_a_file_that_is_not_utf8_is_reported(root):
    (root / 'train.csv').write_bytes(CSV.encode() + 'pics/ä.png,cat\n'.encode('latin-1'))
    assert 'train.csv is not UTF-8 (byte 46); save it as UTF-8' in fault(root)


@pytest.mark.parametrize('name', ['all.txt', 'all.json', 'all'])
def test_a_wrong_suffix_is_refused(name, root):
    (root / name).write_text(CSV)
    assert f'{name} is not a list of examples; give a file that ends in .csv or' in (
        fault(root / name)
    )


def test_a_missing_manifest_is_reported(root):
    assert 'no.csv cannot be read (No such file or directory); name a' in fault(root / 'no.csv')


def test_a_class_without_training_examples_is_refused(root):
    """The one line of the class is assigned to another split."""
    rows = [(name, 'a') for name, _ in ROWS[:50]] + [(ROWS[50][0], 'b')]
    file = table(root / 'all.csv', rows)
    seed = next(seed for seed in range(99) if not is_in_first_part(file, seed))
    message = fault(file, split_seed=seed)
    assert "config.data.train='train': none of the examples of class 'b' falls into it" in message


def is_in_first_part(file, seed: int) -> bool:
    """Return whether class b is in the first 80%, with a split that may lack classes."""
    shares = (('part', 0.8), ('rest', 0.2))
    return 1 in source(file, 'part', classes=('a', 'b'), split_seed=seed, shares=shares).labels


def test_shares_are_read_only_if_splits_are_assigned(root):
    file = table(root / 'all.csv', ROWS)
    table(root / 'train.csv', ROWS)
    assert unread(config(file, source='manifest')) == {'name', 'dir'}
    reads = unread(config(root, source='manifest'))
    assert reads == {'name', 'dir', 'shares', 'split_seed'}
