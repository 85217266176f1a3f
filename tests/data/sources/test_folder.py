"""Tests of folders of images, with explicit splits or splits assigned by a hash."""

import hashlib
import os
import shutil

import cv2
import numpy as np
import pytest

from jaxtrain.config import Config, base
from jaxtrain.data.images.find import walk
from jaxtrain.data.pipeline import Order, Reading, train_batches
from jaxtrain.data.sources import files
from jaxtrain.data.sources.open import open_source
from jaxtrain.errors import UserError
from jaxtrain.weights.bundle import resolve

SIZE = (6, 5)


def config(root, **changes) -> Config:
    settings = {'source': 'folder', 'path': str(root), 'image_size': SIZE, **changes}
    tree = Config(base().to_dict())
    changed = tree.replace(**{f'data__{name}': value for name, value in settings.items()})
    return resolve(changed, None)


def source(root, split='train', limit=0, classes=(), key='config.data.train', **changes):
    return open_source(config(root, **changes).data, split, key, limit, classes)


def fault(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        opened = source(*arguments, **options)
        opened.fetch(np.arange(len(opened)))
    assert '\n' not in str(caught.value)
    return str(caught.value)


def image(name: str) -> np.ndarray:
    """Return an image of one colour, derived from the name of the file without its suffix."""
    colour = hashlib.md5(os.path.splitext(name)[0].encode()).digest()[:3]
    return np.broadcast_to(np.frombuffer(colour, np.uint8), (*SIZE, 3))


def write(root, *names: str):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = b''
        if path.suffix.lower() in ('.png', '.bmp'):
            data = cv2.imencode('.png', image(name)[..., ::-1])[1].tobytes()
        path.write_bytes(data)
    return root


def examples(opened) -> dict[bytes, str]:
    """Return a dict from pixels to class name of all examples."""
    rows = opened.fetch(np.arange(len(opened)))
    assert (rows['image'].dtype, rows['label'].dtype) == (np.uint8, np.int32)
    assert (opened.labels == rows['label']).all()
    return {
        x.tobytes(): opened.classes[y] for x, y in zip(rows['image'], rows['label'], strict=True)
    }


def labelled(*names: str, level: int = 0) -> dict[bytes, str]:
    """Return the result of `examples` for files whose class is the folder at that level."""
    return {image(name).tobytes(): name.split('/')[level] for name in names}


PETS = tuple(f'{name}/{i}.png' for name in ('cat', 'dog', 'owl') for i in range(40))


@pytest.fixture(scope='module')
def pets(tmp_path_factory):
    return write(tmp_path_factory.mktemp('pets'), *PETS)


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    """DIR/SPLIT/CLASS/**, with files that must be ignored."""
    root = tmp_path_factory.mktemp('split')
    write(root, *(f'{part}/{name}' for part in ('train', 'val') for name in PETS[35:45]))
    write(root, 'train/cat/deep/er/1.PNG', 'train/cat/.hidden.png', 'train/.git/1.png')
    write(root, 'train/cat/Thumbs.db', 'train/dog/notes.txt', 'README.md', 'train/read.me')
    return root


def test_folders_with_explicit_splits(split):
    train, val = source(split), source(split, 'val')
    names = [f'train/{name}' for name in PETS[35:45]]
    assert examples(train) == labelled(*names, 'train/cat/deep/er/1.PNG', level=1)
    assert examples(val) == labelled(*(f'val/{name}' for name in PETS[35:45]), level=1)
    assert train.classes == ('cat', 'dog')
    assert (train.shape, len(train), len(val)) == ((*SIZE, 3), 11, 10)


def test_every_image_is_in_one_split(pets):
    parts = [examples(source(pets, part)) for part in ('train', 'val', 'test')]
    assert sum(map(len, parts)) == len(PETS)
    assert parts[0] | parts[1] | parts[2] == labelled(*PETS)
    sizes = np.array([len(part) for part in parts]) / len(PETS)
    np.testing.assert_allclose(sizes, (0.8, 0.1, 0.1), atol=0.08)


def test_the_hash_is_the_documented_one(pets):
    """The SHA-256 of SEED/CLASS/STEM, as a share of its range, falls between cumulative shares."""

    def position(name: str) -> float:
        digest = hashlib.sha256(f'7/{os.path.splitext(name)[0]}'.encode()).hexdigest()
        return int(digest[:16], 16) / 16**16

    shares = (('test', 0.25), ('train', 0.5))
    options = {'split_seed': 7, 'shares': shares}
    test, train = (source(pets, part, **options) for part in ('test', 'train'))
    assert examples(test) == labelled(*(name for name in PETS if position(name) < 0.25))
    assert examples(train) == labelled(*(name for name in PETS if 0.25 <= position(name) < 0.75))


def test_another_seed_gives_other_splits(pets):
    assert examples(source(pets, 'test')) != examples(source(pets, 'test', split_seed=1))


def test_nothing_moves_an_image_to_another_split(pets, tmp_path):
    before = {part: examples(source(pets, part)) for part in ('train', 'val', 'test')}
    moved = tmp_path / 'elsewhere'
    shutil.copytree(pets, moved)
    for path in sorted(moved.glob('*/1*.png')):
        path.rename(path.with_suffix('.bmp'))  # still PNG data; only the name matters
    write(moved, *(f'cat/more{i}.png' for i in range(40)), 'ant/1.png', 'ant/2.png')
    write(moved, *(f'ant/{i}.png' for i in range(30)))
    os.remove(moved / 'owl' / '7.png')
    removed = image('owl/7.png').tobytes()
    for part, kept in before.items():
        after = examples(source(moved, part))
        assert {pixels: name for pixels, name in kept.items() if pixels != removed}.items() <= (
            after.items()
        )


def test_examples_are_sorted_by_class_and_name(tmp_path):
    write(tmp_path, 'train/b/2.png', 'train/b/10.png', 'train/a/x/1.png', 'train/a/1.png')
    rows = source(tmp_path).fetch(np.arange(4))
    names = ('train/a/1.png', 'train/a/x/1.png', 'train/b/10.png', 'train/b/2.png')
    np.testing.assert_array_equal(rows['image'], [image(name) for name in names])
    assert rows['label'].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize('skip', [False, True])
def test_in_memory_and_batch_by_batch_are_the_same(pets, skip):
    options = {'on_bad_image': 'skip' if skip else 'error'}
    memory, disk = source(pets, **options), source(pets, memory_mib=0, **options)
    order = np.random.default_rng(0).permutation(len(memory))
    for name in ('image', 'label'):
        np.testing.assert_array_equal(memory.fetch(order)[name], disk.fetch(order)[name])


def test_only_images_that_are_not_in_memory_are_read_again(pets, monkeypatch):
    memory, disk = source(pets, split_seed=5), source(pets, split_seed=5, memory_mib=0)
    monkeypatch.setattr(files, 'read_image', lambda path, t, _: np.full(t.shape, 7, np.uint8))
    assert (disk.fetch(np.arange(3))['image'] == 7).all()
    assert (memory.fetch(np.arange(3))['image'] != 7).any()


def test_the_arms_of_a_comparison_share_images_in_memory(pets):
    assert source(pets).fetch is source(pets).fetch


@pytest.mark.parametrize('memory_mib', [0, 2048])
def test_a_limit_keeps_the_first_examples_of_each_class(split, memory_mib):
    opened = source(split, limit=3, memory_mib=memory_mib)
    expected = labelled(*(f'train/{name}' for name in PETS[35:38] + PETS[40:43]), level=1)
    assert examples(opened) == expected


def test_a_limit_larger_than_a_class_is_refused(split):
    words = "limit=6 is larger than the data: class 'dog' has 5 examples in"
    assert words in fault(split, limit=6)


def test_labels_refer_to_the_classes_of_the_run(split):
    opened = source(split, 'val', classes=('ant', 'dog', 'cat'))
    assert opened.classes == ('ant', 'dog', 'cat')
    assert examples(opened) == labelled(*(f'val/{name}' for name in PETS[35:45]), level=1)
    assert set(opened.labels.tolist()) == {1, 2}


def test_images_are_turned_upright_unless_exif_is_off(tmp_path):
    from PIL import Image

    write(tmp_path, 'train/a/1.png', 'train/b/1.png')
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:3] = 255
    Image.fromarray(pixels).save(tmp_path / 'train' / 'a' / '1.png', exif=exif)
    turned, plain = (source(tmp_path, exif=on).fetch(np.array([0]))['image'][0] for on in (1, 0))
    np.testing.assert_array_equal(plain, pixels)
    np.testing.assert_array_equal(turned, pixels[::-1])


def test_listing_makes_no_stat_call_per_file(tmp_path, monkeypatch):
    """On a network file system these would take minutes; scandir already identifies folders."""
    write(tmp_path, *(f'{name}/{i}.png' for name in 'ab' for i in range(50)))
    calls = []
    for name in ('stat', 'lstat'):
        monkeypatch.setattr(os, name, lambda path, *a, **k: calls.append(path))
    assert len(walk(str(tmp_path))) == 100 and not calls


# The digest


def test_the_digest_changes_with_the_names(pets, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(pets, copy)
    first = source(pets).digest
    assert len(first) == 64 and source(copy).digest == first
    assert source(pets, 'val').digest != first and source(pets, limit=2).digest == first
    kept = next(name for name in PETS if image(name).tobytes() in examples(source(pets)))
    os.rename(copy / kept, copy / 'cat' / 'renamed.png')
    assert source(copy).digest != first


def test_the_digest_depends_on_the_labels(tmp_path):
    write(tmp_path, *(f'{root}/train/{name}.png' for root in 'xy' for name in ('a/1', 'b/2')))
    (tmp_path / 'y/train/a').rename(tmp_path / 'y/train/c')
    assert source(tmp_path / 'x').digest != source(tmp_path / 'y').digest


# Images that cannot be read


@pytest.fixture
def broken(tmp_path):
    """Four valid images and three broken ones."""
    write(tmp_path, *(f'train/{name}' for name in ('a/1.png', 'a/4.png', 'b/1.png', 'b/3.png')))
    whole = (tmp_path / 'train/a/1.png').read_bytes()
    for name, data in (('a/2.png', b''), ('a/3.jpg', b'text'), ('b/2.png', whole[:60])):
        (tmp_path / 'train' / name).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize('memory_mib', [0, 2048])
def test_an_unreadable_image_is_an_error(broken, memory_mib):
    message = fault(broken, memory_mib=memory_mib)
    assert message.startswith(f'{broken}/train/a/2.png cannot be read as an image (it is empty)')
    assert "config.data.on_bad_image='skip'" in message


@pytest.mark.parametrize('memory_mib', [0, 2048])
def test_unreadable_images_are_skipped(broken, memory_mib):
    opened = source(broken, on_bad_image='skip', memory_mib=memory_mib)
    good = ('train/a/1.png', 'train/a/4.png', 'train/b/1.png', 'train/b/3.png')
    assert examples(opened) == labelled(*good, level=1)
    bad = ('a/2.png', 'a/3.jpg', 'b/2.png')
    assert opened.skipped == tuple(f'{broken}/train/{name}' for name in bad)
    for name in bad:
        os.remove(broken / 'train' / name)
    clean = source(broken)
    assert (clean.skipped, clean.digest) == ((), opened.digest)
    np.testing.assert_array_equal(opened.fetch(np.array([3, 1]))['image'],
                                  clean.fetch(np.array([3, 1]))['image'])  # fmt: skip


def test_a_limit_does_not_count_skipped_images(broken):
    opened = source(broken, on_bad_image='skip', limit=2)
    assert len(opened) == 4 and len(opened.skipped) == 3


def test_a_class_without_readable_images_is_refused(broken):
    for name in ('a/1.png', 'a/4.png'):
        (broken / 'train' / name).write_bytes(b'')
    assert "class 'a': none of its images can be read" in fault(broken, on_bad_image='skip')
    for name in ('b/1.png', 'b/3.png'):
        (broken / 'train' / name).write_bytes(b'')
    message = fault(broken, on_bad_image='skip')
    assert 'neither can any other of 7 images; check config.data.path' in message


def test_threads_that_make_batches_raise_one_line_that_names_the_file(broken):
    batches = train_batches(source(broken, memory_mib=0), range(9), Order(2, 0), Reading(2, 4))
    with pytest.raises(UserError, match=r'train/[ab]/[23]\.\w+ cannot be read as an image') as got:
        list(batches)
    assert '\n' not in str(got.value)


def test_a_class_may_be_missing_in_evaluation_splits(tmp_path):
    write(tmp_path, *(f'a/{i}.png' for i in range(50)), *(f'b/{i}.png' for i in range(3)))
    train = source(tmp_path, split_seed=3)
    parts = [
        source(tmp_path, part, classes=train.classes, split_seed=3) for part in ('val', 'test')
    ]
    assert all(part.classes == ('a', 'b') for part in parts)
    assert sum(map(len, parts)) + len(train) == 53
    assert any(set(part.labels.tolist()) == {0} for part in parts)


# Keys that are read


def unread(cfg: Config) -> set[str]:
    open_source(cfg.data, 'train', 'config.data.train')
    read = {'data.image_size', 'data.path', 'data.source'}
    assert read <= cfg._read
    keys = ('name', 'dir', 'shares', 'split_seed', 'on_bad_image', 'exif', 'memory_mib')
    return {key for key in keys if f'data.{key}' not in cfg._read}


def test_keys_without_effect_are_not_read(pets, split):
    assert unread(config(pets)) == {'name', 'dir'}
    assert unread(config(split)) == {'name', 'dir', 'shares', 'split_seed'}


def test_tfds_reads_no_keys_of_image_files():
    cfg = resolve(Config(base().to_dict()).replace(data__name='digits'), None)
    open_source(cfg.data, 'train', 'config.data.train')
    file_keys = ('path', 'shares', 'split_seed', 'on_bad_image', 'exif')
    assert not {f'data.{key}' for key in file_keys} & cfg._read
