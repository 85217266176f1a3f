"""Tests of folders of images that are invalid."""

import pytest

from tests.data.sources.test_folder import fault, write


@pytest.mark.parametrize(
    ('names', 'options', 'words'),
    [
        ((), {}, 'holds no images and no class folders; put each image in one, like'),
        (('1.png', '2.png'), {}, 'holds 2 images and no class folders; put each image in one'),
        (('train/1.png', 'val/2.png'), {}, 'train holds no class folders; put each image in one'),
        (('train/1.png', 'valid/2.png', 'test/3.png'), {}, 'holds no class folders'),
        (('a/1.png', 'b/x.txt'), {}, 'b holds no images (.jpg, .jpeg, .png, .webp, .bmp, .gif); '),
        (('a/1.png', 'a/2.png'), {}, "has only the class 'a'; a classifier needs at least two"),
        (('a/1.png', 'a/1.JPG', 'b/1.png'), {}, 'a holds 1.JPG and 1.png, the same example twice'),
        (('train/a/1.png', 'val/1.png'), {'split': 'val'}, 'val holds 1 images and no class'),
        (
            ('train/a/1.png', 'train/b/1.png', 'valid/a/1.png'),
            {'split': 'val', 'key': 'config.data.val'},
            ("config.data.val='val': ROOT has no folder", "'valid'", 'it has train, valid'),
        ),
        (
            ('train/a/1.png', 'train/b/1.png', 'val/a/1.png', 'val/bb/1.png'),
            {'split': 'val', 'classes': ('a', 'b')},
            ("ROOT/val: class 'bb'", "'b'"),
        ),
        (('train/a/1.png', 'train/b/1.png'), {'image_size': ()}, 'config.data.image_size: image '),
        (
            ('a/1.png', 'b/1.png'),
            {'split': 'tset', 'key': '--split'},
            ("--split='tset'", 'config.data.shares', "'test'", 'train, val, test'),
        ),
        (('a/1.png', 'b/1.png'), {'split': 'train[:50%]'}, "'train[:50%]' has no share in"),
        (
            ('a/1.png', 'b/1.png'),
            {'split': 'val', 'shares': (('train', 0.5), ('val', 1e-9))},
            'none of the 2 examples of ROOT falls into it; give it a larger share',
        ),
        (
            (*(f'a/{i}.png' for i in range(50)), 'b/1.png'),
            {'split_seed': 4},  # assigns b/1 to val
            "none of the examples of class 'b' falls into it",
        ),
        (('a/1.png', 'b/1.png'), {'shares': ('train', 'val')}, "must be pairs, like (('train', "),
        (('a/1.png', 'b/1.png'), {'shares': (('train', 0.9), ('val', 0.2))}, 'sum to at most 1'),
        (('a/1.png', 'b/1.png'), {'shares': (('train', 0.9), ('val', 0.0))}, 'shares above 0'),
        (('a/1.png', 'b/1.png'), {'shares': (('train', 0.5), ('train', 0.2))}, 'each split once'),
        (
            ('train/a/1.png',),
            {'on_bad_image': 'skpi'},
            ("config.data.on_bad_image='skpi'", "'skip'"),
        ),
    ],
)
def test_invalid_folders_are_refused(names, options, words, tmp_path):
    if 'on_bad_image' in options:
        names = (*names, 'train/b/1.png')
    message = fault(write(tmp_path, *names), **options)
    for word in (words,) if isinstance(words, str) else words:
        assert word.replace('ROOT', str(tmp_path)) in message, message


@pytest.mark.parametrize(
    ('path', 'words'),
    [
        ('', "config.data.path is empty; give the folder or file of source='folder'"),
        ('missing', "missing' does not exist; for source='folder' give a folder of images"),
        ('a/1.png', "1.png' is not a folder"),
    ],
)
def test_an_invalid_path_is_refused(path, words, tmp_path):
    write(tmp_path, 'a/1.png')
    assert words in fault(tmp_path / path if path else '')


def test_an_unknown_source_is_refused(tmp_path):
    message = fault(tmp_path, source='foldr')
    assert "config.data.source='foldr'" in message and "'folder'" in message
