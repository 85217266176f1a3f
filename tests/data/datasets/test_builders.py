"""Tests of the data sets that the package generates: glyphs and digits."""

import collections
import hashlib
import io
import os
import pathlib
import subprocess
import sys
import unicodedata

import cv2
import matplotlib
import numpy as np
import pytest
import tensorflow_datasets as tfds
from matplotlib.ft2font import FT2Font
from sklearn.datasets import load_digits

from jaxtrain.data.datasets import digits, glyphs
from jaxtrain.data.datasets.prepare import builder, prepare

GREEK = 'αβγδεζηθικλμνξοπρστυφχψω'


def read(source: tfds.core.DatasetBuilder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a split as the pipeline does: images uint8 [n, h, w], labels [n]."""
    rows = source.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    images = [
        cv2.imdecode(np.frombuffer(row['image'], np.uint8), cv2.IMREAD_UNCHANGED) for row in rows
    ]
    return np.stack(images), np.array([row['label'] for row in rows])


def digest(source: tfds.core.DatasetBuilder) -> str:
    """Return a hash of every record of every split, in order."""
    total = hashlib.sha256()
    for split in sorted(source.info.splits):
        for row in source.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()}):
            total.update(b'%s %d %s' % (split.encode(), row['label'], row['image']))
    return total.hexdigest()


def config(name: str) -> glyphs.GlyphsConfig:
    return glyphs.Glyphs.builder_configs[name]


@pytest.fixture(scope='module')
def greek(tmp_path_factory):
    dataset = builder('glyphs/greek', str(tmp_path_factory.mktemp('greek')))
    prepare(dataset)
    return dataset


@pytest.fixture(scope='module')
def small_digits(tmp_path_factory):
    dataset = builder('digits', str(tmp_path_factory.mktemp('digits')))
    prepare(dataset)
    return dataset


def test_greek_has_the_documented_number_of_images_per_split_and_class(greek):
    expected_sizes = {'train': 2000, 'val': 1000, 'test': 2000}
    assert {name: split.num_examples for name, split in greek.info.splits.items()} == expected_sizes
    for split, count in expected_sizes.items():
        images, labels = read(greek, split)
        assert images.shape == (count, 20, 20) and images.dtype == np.uint8
        per_class = np.bincount(labels, minlength=24)
        assert len(per_class) == 24
        assert per_class.min() >= count // 24 and per_class.max() <= -(-count // 24)


def test_greek_labels_are_the_24_letters(greek):
    assert greek.info.features['label'].names == list(GREEK)
    assert 'ς' not in greek.info.features['label'].names


def test_greek_images_are_those_of_example(greek):
    """Each record has the exact pixels and the label: PNG is lossless, and no row is mixed up."""
    images, labels = read(greek, 'val')
    stored = collections.Counter(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )
    generated = (glyphs.example('greek', GREEK, 'val', index) for index in range(1000))
    assert stored == collections.Counter((image.tobytes(), label) for image, label in generated)


def test_greek_images_are_distinct_across_all_splits(greek):
    images = np.concatenate([read(greek, split)[0] for split in greek.info.splits])
    assert len({image.tobytes() for image in images}) == 5000


def test_greek_is_light_ink_on_a_dark_background_and_its_classes_differ(greek):
    images, labels = read(greek, 'train')
    border = np.ones((20, 20), bool)
    border[2:-2, 2:-2] = False
    brightest = np.sort(images[:, ~border], axis=1)[:, -20:].mean(1)
    ground = np.median(images[:, border], axis=1)
    assert np.mean(brightest > ground + 40) > 0.99
    assert images.std(axis=(1, 2)).min() > 5
    # The nearest class mean classifies warped letters poorly, but above chance for every class.
    flat = images.reshape(len(images), -1) / 255.0
    flat = flat - flat.mean(1, keepdims=True)
    means = np.stack([flat[labels == label].mean(0) for label in range(24)])
    right = np.argmax(flat @ means.T / np.linalg.norm(means, axis=1), axis=1) == labels
    assert 0.2 < right.mean() < 0.8  # chance is 0.04
    assert min(right[labels == label].mean() for label in range(24)) > 0.04


def run_python(code: str, *args: str, **env: str) -> tuple[str, str]:
    """Run code in a fresh process that has the import path of this one."""
    done = subprocess.run(
        [sys.executable, '-c', code, *args],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
def test_two_preparations_are_equal_whatever_the_hash_seed(greek, tmp_path):
    """And where stderr is no terminal, nothing is printed."""
    code = """
import sys
from jaxtrain.data.datasets.prepare import builder, prepare
prepare(builder("glyphs/greek", sys.argv[1]))
print("silent", file=sys.stderr)
print("silent")
"""
    said = run_python(code, str(tmp_path), PYTHONHASHSEED='7')
    assert said == ('silent\n', 'silent\n')
    assert digest(builder('glyphs/greek', str(tmp_path))) == digest(greek)


def test_tfds_finds_the_data_set_by_name_in_a_fresh_process(greek):
    code = """
import sys
import tensorflow_datasets as tfds
import jaxtrain.data.datasets.glyphs
dataset = tfds.builder("glyphs/greek", data_dir=sys.argv[1])
names = dataset.info.features["label"].names
print(type(dataset).__name__, len(dataset.as_data_source("test")), *names)
"""
    out, _ = run_python(code, str(greek.data_dir_root), PYTHONIOENCODING='utf-8')
    assert out.split() == ['Glyphs', '2000', *GREEK]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    'stream, quiet, seen', [(Terminal, False, True), (Terminal, True, False), (io.StringIO, 0, 0)]
)
def test_the_progress_bar_is_shown_only_on_a_terminal_unless_quiet(
    stream, quiet, seen, tmp_path, monkeypatch
):
    small = glyphs.GlyphsConfig(name='small', characters='ab', splits={'train': 4, 'val': 2})
    dataset = glyphs.Glyphs(config=small, data_dir=str(tmp_path))
    monkeypatch.setattr(sys, 'stderr', stream())
    prepare(dataset, quiet=bool(quiet))
    written = sys.stderr.getvalue()
    assert ('glyphs/small train' in written and 'glyphs/small val' in written) == bool(seen)
    assert bool(written) == bool(seen)
    assert [len(dataset.as_data_source(split)) for split in ('train', 'val')] == [4, 2]


def test_latin_cyrillic_has_54000_3000_3000_images_of_90_classes():
    expected_sizes = {'train': 54_000, 'val': 3_000, 'test': 3_000}
    assert config('latin_cyrillic').splits == expected_sizes
    characters = config('latin_cyrillic').characters
    assert len(characters) == len(set(characters)) == 90
    assert sum('LATIN' in unicodedata.name(c) for c in characters) == 52
    assert sum('CYRILLIC' in unicodedata.name(c) for c in characters) == 38


@pytest.mark.slow
def test_latin_cyrillic_generates_balanced_splits_of_the_documented_sizes(tmp_path, monkeypatch):
    """The real generator runs over all 60,000 indices; only the drawing is left out."""
    monkeypatch.setattr(glyphs, 'render', lambda character, face: None)
    monkeypatch.setattr(glyphs, 'distort', lambda glyph, rng: np.zeros((20, 20), np.uint8))
    dataset = builder('glyphs/latin_cyrillic', str(tmp_path))
    for split, rows in dataset._split_generators(None).items():
        keys, labels = zip(*((key, row['label']) for key, row in rows), strict=True)
        count = {'train': 54_000, 'val': 3_000, 'test': 3_000}[split]
        assert len(set(keys)) == len(keys) == count
        per_class = np.bincount(labels, minlength=90)
        assert len(per_class) == 90
        assert per_class.min() >= count // 90 and per_class.max() <= -(-count // 90)


def test_latin_cyrillic_shares_no_character_with_greek():
    assert not set(config('latin_cyrillic').characters) & set(config('greek').characters)


def test_an_example_depends_on_config_split_and_index_alone():
    characters = config('latin_cyrillic').characters

    def make(name='latin_cyrillic', split='train', index=53_999):
        return glyphs.example(name, characters, split, index)[0]

    first = make()
    glyphs.render.cache_clear()
    np.random.seed(1)
    assert np.array_equal(first, make())
    others = [make(name='other'), make(split='val'), make(index=53_999 - 90)]
    assert not any(np.array_equal(first, other) for other in others)


def test_every_font_has_every_character():
    characters = config('latin_cyrillic').characters + config('greek').characters
    assert len(set(glyphs.FACES)) == 16
    for face in glyphs.FACES:
        path = pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf', face)
        assert not {ord(c) for c in characters} - set(FT2Font(str(path)).get_charmap()), face


def test_glyphs_are_centred_and_complete_and_capitals_are_larger():
    def extent(character):  # extent of the ink: [[first row, last row], [first col, last col]]
        ink = np.nonzero(glyphs.render(character, face))
        return np.array([[axis.min(), axis.max()] for axis in ink])

    for face in glyphs.FACES:
        for character in config('latin_cyrillic').characters + config('greek').characters:
            assert np.abs(extent(character).sum(1) - 143).max() <= 1, (character, face)
            assert extent(character).min() > 0 and extent(character).max() < 143, (character, face)
        assert np.ptp(extent('S'), 1)[0] > 1.2 * np.ptp(extent('s'), 1)[0]


def test_thicker_strokes_have_more_ink():
    glyph = glyphs.render('K', 'DejaVuSans.ttf')
    ink = [glyphs._thicken(glyph, pixels).sum(dtype=int) for pixels in (-1.2, -0.4, 0.4, 1.2, 1.8)]
    assert ink[0] < ink[1] == glyph.sum(dtype=int) == ink[2] < ink[3] < ink[4]


def test_the_warp_shifts_the_centre_and_rotates_and_scales():
    plain = {'rotation': 0.0, 'scale_x': 1.0, 'scale_y': 1.0, 'shear': 0.0}
    moved = glyphs._affine({**plain, 'shift_x': 2.0, 'shift_y': -1.0})
    np.testing.assert_allclose(moved @ [35.5, 35.5, 1.0], [11.5, 8.5])
    still = {'shift_x': 0.0, 'shift_y': 0.0}
    # Three pixels of the half canvas are one pixel of the image; y points down, so +90 degrees
    # maps x to y.
    turned = glyphs._affine({**plain, **still, 'rotation': 90.0})
    np.testing.assert_allclose(turned @ [38.5, 35.5, 1.0], [9.5, 10.5])
    np.testing.assert_allclose(turned @ [35.5, 38.5, 1.0], [8.5, 9.5])
    wide = glyphs._affine({**plain, **still, 'scale_x': 2.0, 'shear': 0.5})
    np.testing.assert_allclose(wide @ [38.5, 35.5, 1.0], [11.5, 9.5])
    np.testing.assert_allclose(wide @ [35.5, 38.5, 1.0], [10.0, 10.5])


def test_digits_are_the_pixels_of_scikit_learn_each_in_one_split(small_digits):
    bunch = load_digits()
    expected = collections.Counter(
        ((image * 255 / 16).round().astype(np.uint8).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    stored = collections.Counter()
    for split in ('train', 'val', 'test'):
        images, labels = read(small_digits, split)
        assert images.shape[1:] == (8, 8) and images.dtype == np.uint8
        stored.update(
            (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
        )
    assert stored == expected


def test_digits_splits_are_disjoint_cover_all_and_are_stratified(small_digits):
    labels = load_digits().target
    rows = digits.split_rows(labels)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(1797))
    expected_sizes = {'train': 897, 'val': 300, 'test': 600}
    assert {name: len(chosen) for name, chosen in rows.items()} == expected_sizes
    assert {name: s.num_examples for name, s in small_digits.info.splits.items()} == expected_sizes
    whole = np.bincount(labels)
    for split, count in expected_sizes.items():
        stored = np.bincount(read(small_digits, split)[1], minlength=10)
        assert np.array_equal(stored, np.bincount(labels[rows[split]], minlength=10))
        assert np.abs(stored - whole * count / 1797).max() <= 2


def test_the_split_of_digits_is_the_published_one():
    """A golden value: the split is part of version 1.0.0 and must not move."""
    rows = digits.split_rows(load_digits().target)
    assert rows['val'][:8].tolist() == [0, 2, 6, 11, 12, 17, 30, 40]


def test_digits_labels_are_the_ten_digits(small_digits):
    assert small_digits.info.features['label'].names == list('0123456789')


def test_two_preparations_of_digits_are_equal(small_digits, tmp_path):
    other = builder('digits', str(tmp_path))
    prepare(other)
    assert digest(other) == digest(small_digits)


@pytest.mark.parametrize('name', ['greek', 'small_digits'])
def test_the_builders_have_a_description(name, request):
    info = request.getfixturevalue(name).info
    assert '8x8 grey images' in info.description or '20x20 images' in info.description
    assert name != 'small_digits' or 'Alpaydin' in info.citation
