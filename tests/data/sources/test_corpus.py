"""Tests of text files for language modelling: windows, splits and invalid input."""

import numpy as np
import pytest

from jaxtrain.config import Config, base
from jaxtrain.data.sources.corpus import windows
from jaxtrain.data.sources.open import open_source
from jaxtrain.data.tokenizer import open_tokenizer
from jaxtrain.errors import UserError
from jaxtrain.weights.bundle import resolve

BYTES = open_tokenizer('bytes')


def source(path, split='train', limit=0, **changes):
    settings = {'source': 'corpus', 'path': str(path), 'length': 8, 'tokenizer': 'bytes', **changes}
    changed = {f'data__{name}': value for name, value in settings.items()}
    cfg = resolve(Config(base().to_dict()).replace(**changed), None)
    return open_source(cfg.data, split, f'config.data.{split}', limit)


def fault(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        source(*arguments, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def counted(opened) -> list[int]:
    """Return the targets that are not ignored, in order."""
    targets = opened.fetch(np.arange(len(opened)))['targets']
    return targets[targets >= 0].tolist()


def text(opened) -> str:
    """Return the text of a split without its first byte, with | for the end of a text."""
    return ''.join('|' if t == BYTES.end else BYTES.decode([t]) for t in counted(opened))


@pytest.mark.parametrize('count', [2, 8, 9, 10, 17, 18, 100])
@pytest.mark.parametrize('length', [1, 4, 8])
def test_every_token_except_the_first_is_a_target_once(count, length):
    stream = np.arange(100, 100 + count, dtype=np.int32)
    tokens, targets = windows(stream, length)
    assert tokens.shape == targets.shape == (-(-(count - 1) // length), length)
    assert targets[targets >= 0].tolist() == stream[1:].tolist()
    # The target of each token is the next one.
    assert (targets[targets >= 0] == tokens[targets >= 0] + 1).all()
    assert (targets[:-1] >= 0).all() and tokens.min() >= 0


def test_files_are_joined_in_order_with_an_end_token_each(tmp_path):
    (tmp_path / 'train' / 'sub').mkdir(parents=True)
    (tmp_path / 'train' / 'b.txt').write_text('second')
    (tmp_path / 'train' / 'a.txt').write_text('first')
    (tmp_path / 'train' / 'sub' / 'c.txt').write_text('third')
    (tmp_path / 'train' / '.hidden.txt').write_text('x')
    (tmp_path / 'train' / 'other.md').write_text('x')
    (tmp_path / 'train' / 'empty.txt').write_text('')
    opened = source(tmp_path)
    assert text(opened) == 'irst|second|third|'
    assert (opened.shape, opened.classes) == ((8,), ())
    batch = opened.fetch(np.arange(len(opened)))
    assert batch.keys() == opened.features.keys()


def test_the_pattern_selects_files(tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / 'a.py').write_text('import b')
    assert text(source(tmp_path, pattern='*.py')) == 'mport b|'
    assert 'holds no file *.txt' in fault(tmp_path)


def test_files_are_assigned_to_splits_by_their_names(tmp_path):
    for i in range(50):
        (tmp_path / f'{i:02}.txt').write_text(f'<{i:02}>')
    parts = {part: text(source(tmp_path, part)) for part in ('train', 'val', 'test')}
    numbers = sorted(
        n for t in parts.values() for n in t.replace('<', '').replace('>', '').split('|') if n
    )
    assert numbers == [f'{i:02}' for i in range(50)]
    (tmp_path / 'new.txt').write_text('<new>')
    for part, before in parts.items():
        after = text(source(tmp_path, part))
        assert after.replace('<new>|', '') == before


def test_one_file_is_split_at_line_breaks(tmp_path):
    lines = [f'line {i}\n' for i in range(100)]
    (tmp_path / 'all.txt').write_text(''.join(lines))
    parts = [text(source(tmp_path / 'all.txt', part)) for part in ('train', 'val', 'test')]
    # The first byte of each split is not a target.
    assert ''.join('l' + part.rstrip('|') for part in parts) == ''.join(lines)
    assert 0.78 < len(parts[0]) / len(''.join(lines)) < 0.82
    assert all(part.endswith('\n|') for part in parts)


def test_one_file_without_line_breaks_belongs_to_the_first_split(tmp_path):
    (tmp_path / 'all.txt').write_text('word ' * 50)
    assert len(counted(source(tmp_path / 'all.txt'))) == 250
    assert 'has no text for that split' in fault(tmp_path / 'all.txt', 'val')


def test_the_digest_depends_on_the_content(tmp_path):
    (tmp_path / 'all.txt').write_text('a\n' * 100)
    before = source(tmp_path / 'all.txt').digest
    (tmp_path / 'all.txt').write_text('a\n' * 101)
    assert source(tmp_path / 'all.txt').digest != before


def test_a_missing_folder_is_reported(tmp_path):
    assert 'does not exist' in fault(tmp_path / 'none')


def test_a_missing_split_is_reported(tmp_path):
    for part in ('train', 'vals'):
        (tmp_path / part).mkdir()
        (tmp_path / part / 'a.txt').write_text('text')
    message = fault(tmp_path, 'val')
    assert "config.data.val='val'" in message and "'vals'" in message


def test_a_file_that_is_not_utf8_is_reported(tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / 'a.txt').write_bytes(b'ab\xff')
    assert 'a.txt is not UTF-8 (byte 2)' in fault(tmp_path)


def test_a_limit_is_refused_without_classes(tmp_path):
    (tmp_path / 'all.txt').write_text('a\n' * 100)
    message = fault(tmp_path / 'all.txt', limit=5)
    assert 'config.data.limit=5 counts the examples of each class' in message


def test_a_split_may_start_exactly_at_a_line(tmp_path):
    (tmp_path / 'all.txt').write_text('123456789\n' * 10)
    parts = [counted(source(tmp_path / 'all.txt', part)) for part in ('train', 'val', 'test')]
    assert [len(part) for part in parts] == [
        80,
        10,
        10,
    ]  # the end token makes up for the first byte
