"""Tests of finding a data set by name, and of preparing it once and completely."""

import hashlib
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from absl import logging

from jaxtrain.data.datasets.digits import Digits
from jaxtrain.data.datasets.prepare import builder, prepare
from jaxtrain.errors import UserError

# Prepares digits in argv[1]. It prints "ready" and waits for the file argv[1]/go. Then it prints
# "generating" for each split that it writes, and pauses for argv[2] seconds.
CHILD = """
import os, pathlib, sys, time
from jaxtrain.data.datasets import digits
from jaxtrain.data.datasets.prepare import builder, prepare

generate = digits.Digits._generate_examples

def slow(self, *args):
    rows = generate(self, *args)
    yield next(rows)
    os.write(1, b"generating\\n")  # because print is silenced while TFDS runs
    time.sleep(float(sys.argv[2]))
    yield from rows

digits.Digits._generate_examples = slow
dataset = builder("digits", sys.argv[1])
print("ready", file=sys.stderr, flush=True)
while not pathlib.Path(sys.argv[1], "go").exists():
    time.sleep(0.01)
prepare(dataset)
print("read", *(len(dataset.as_data_source(split)) for split in ("train", "val", "test")))
"""


def start(data_dir: Path, pause: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-c', CHILD, str(data_dir), str(pause)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digest(data_dir: Path) -> str:
    """Return a hash of the records of digits in a data_dir, read with plain TFDS."""
    dataset = tfds.builder('digits', data_dir=str(data_dir))
    total = hashlib.sha256()
    for split in ('train', 'val', 'test'):
        for row in dataset.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()}):
            total.update(b'%s %d %s' % (split.encode(), row['label'], row['image']))
    return total.hexdigest()


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The digest of digits, prepared without interruption."""
    folder = tmp_path_factory.mktemp('whole')
    prepare(builder('digits', str(folder)))
    return digest(folder)


def test_two_concurrent_processes_prepare_once_and_both_read(tmp_path, whole):
    children = [start(tmp_path, 0.3) for _ in range(2)]
    for child in children:
        assert child.stderr.readline() == 'ready\n'
    (tmp_path / 'go').touch()
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    lines = sorted(out.splitlines() for out, _ in outputs)
    # Both builders were made before the data existed, and both can read it in the end.
    assert lines == [['generating'] * 3 + ['read 897 300 600'], ['read 897 300 600']]
    assert digest(tmp_path) == whole


def test_after_a_kill_nothing_is_prepared_and_the_next_process_starts_again(tmp_path, whole):
    (tmp_path / 'go').touch()
    child = start(tmp_path, 60)
    assert child.stdout.readline() == 'generating\n'
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    leftover = list(tmp_path.glob('digits/incomplete.*'))
    assert len(leftover) == 1
    again = builder('digits', str(tmp_path))
    assert not again.is_prepared()

    neighbours = [
        tmp_path / 'digits/incomplete.ABC123_2.0.0',  # another version
        tmp_path / 'glyphs/greek/incomplete.ABC123_1.0.0',  # another data set
    ]
    for neighbour in neighbours:
        neighbour.mkdir(parents=True)
    prepare(again)
    assert not leftover[0].exists()
    assert all(neighbour.exists() for neighbour in neighbours)
    assert {name: split.num_examples for name, split in again.info.splits.items()} == {
        'train': 897,
        'val': 300,
        'test': 600,
    }
    assert digest(tmp_path) == whole


def test_a_prepared_data_set_is_not_changed_and_needs_no_write_permission(tmp_path):
    prepare(builder('digits', str(tmp_path)))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    (tmp_path / 'digits/1.0.0.lock').unlink()
    (tmp_path / 'digits/1.0.0.lock').mkdir()  # so that taking the lock would fail
    again = builder('digits', str(tmp_path))
    prepare(again)
    assert again.info.splits['train'].num_examples == 897
    records = [path for path in files if 'array_record' in path.name]
    assert len(records) == 3
    assert all(path.stat().st_mtime_ns == files[path] for path in records)


def test_a_folder_without_a_complete_data_set_is_refused(tmp_path):
    (tmp_path / 'digits/1.0.0').mkdir(parents=True)
    with pytest.raises(UserError, match=r'digits/1\.0\.0 is not a complete data set; remove it'):
        prepare(builder('digits', str(tmp_path)))


def test_an_unwritable_data_dir_is_a_user_error(tmp_path):
    (tmp_path / 'file').write_text('not a folder')
    with pytest.raises(UserError) as caught:
        prepare(builder('digits', str(tmp_path / 'file' / 'data')))
    message = str(caught.value)
    assert f'cannot write {tmp_path}/file/data/digits (Not a directory)' in message
    assert 'TFDS_DATA_DIR' in message and '\n' not in message


def test_a_bucket_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remote = types.SimpleNamespace(data_dir='gs://bucket/digits/1.0.0', is_prepared=lambda: False)
    with pytest.raises(UserError, match=r'gs://bucket.*local folder'):
        prepare(remote)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'name, nearest',
    [
        ('glyphs/grek', 'glyphs/greek, glyphs/latin_cyrillic'),
        ('glyphs', 'glyphs/greek'),
        ('digit', 'digits, '),
        ('mnits', 'mnist, '),
        ('cifar10_corrupted/fogg_1', 'cifar10_corrupted/fog_1, '),
        ('digits:9.9.9', 'digits;'),
        ('kmnist:9.9.9', 'kmnist, '),
        ('a b?', 'digits, glyphs/latin_cyrillic, glyphs/greek, mnist, '),
        ('../digits', 'digits;'),
        ('', 'digits, glyphs/latin_cyrillic, glyphs/greek, mnist, '),
    ],
)
def test_an_unknown_name_is_reported_with_the_nearest_ones(name, nearest, tmp_path):
    with pytest.raises(UserError) as caught:
        builder(name, str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f'config.data.name = {name!r}: no such data set; nearest known')
    assert f'names: {nearest}' in message
    assert str(tmp_path) in message and '\n' not in message


@pytest.mark.parametrize('name', ['kmnist', 'kmnist:3.*.*'])
def test_an_unprepared_tfds_name_is_reported_with_how_to_prepare_it(name, tmp_path):
    with pytest.raises(UserError) as caught:
        builder(name, str(tmp_path))
    message = str(caught.value)
    assert f'config.data.name = {name!r}: not prepared in {tmp_path}/kmnist/3.0.1' in message
    assert 'TensorFlow' in message and '\n' not in message
    assert f'copy the folder data/kmnist to {tmp_path}: python -c "' in message
    recipe = message[message.index('python -c "') + len('python -c "') : -1]
    assert recipe == (
        f"import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir='data')"
        ".download_and_prepare(file_format='array_record')"
    )


def surrogate(data_dir: Path, name: str, version: str, config: str | None = None) -> None:
    """Prepare the digits under another name: a data set whose code is not available."""
    body = {'name': name, 'VERSION': tfds.core.Version(version)}
    if config:
        body['BUILDER_CONFIGS'] = [tfds.core.BuilderConfig(name=config)]
    cls = types.new_class(
        'Surrogate', (Digits,), {'skip_registration': True}, lambda space: space.update(body)
    )
    prepare(cls(data_dir=str(data_dir)))


@pytest.fixture(scope='module')
def others(tmp_path_factory) -> Path:
    """A data_dir prepared with code that is not available."""
    folder = tmp_path_factory.mktemp('others')
    surrogate(folder, 'mnist', '3.0.0')
    surrogate(folder, 'kmnist', '2.1.0')
    surrogate(folder, 'kmnist', '2.0.0')
    surrogate(folder, 'my_set', '1.0.0')
    surrogate(folder, 'my_set', '1.2.3')
    surrogate(folder, 'with_configs', '1.2.0', 'small')
    (
        folder / 'with_configs/.config/metadata.json'
    ).unlink()  # as if only the version folder had been copied
    return folder


@pytest.mark.parametrize(
    'name, where',
    [
        ('my_set', 'my_set/1.2.3'),  # the newest
        ('my_set:1.0.0', 'my_set/1.0.0'),
        ('my_set:1.0.*', 'my_set/1.0.0'),
        ('my_set:1.*.*', 'my_set/1.2.3'),
        ('with_configs/small', 'with_configs/small/1.2.0'),
        ('with_configs/small:1.2.0', 'with_configs/small/1.2.0'),
        ('with_configs/small:1.2.*', 'with_configs/small/1.2.0'),
        # TFDS has other versions of these.
        ('kmnist', 'kmnist/2.1.0'),
        ('kmnist:2.0.0', 'kmnist/2.0.0'),
        ('mnist', 'mnist/3.0.0'),  # rather than downloading 3.0.1
    ],
)
def test_a_prepared_data_set_is_found_by_its_name(name, where, others):
    dataset = builder(name, str(others))
    assert dataset.data_dir == str(others / where)
    prepare(dataset)
    assert len(dataset.as_data_source('val')) == dataset.info.splits['val'].num_examples == 300


def test_the_version_of_the_code_is_used_if_it_is_prepared(tmp_path):
    surrogate(tmp_path, 'kmnist', '3.0.1')
    surrogate(tmp_path, 'kmnist', '3.9.0')
    assert builder('kmnist', str(tmp_path)).data_dir == f'{tmp_path}/kmnist/3.0.1'


@pytest.mark.parametrize(
    'name, there',
    [
        ('my_set:2.0.0', 'my_set:1.0.0, my_set:1.2.3'),
        ('my_set/small', 'my_set:1.0.0, my_set:1.2.3'),
        ('with_configs', 'with_configs/small:1.2.0'),
        ('with_configs/large', 'with_configs/small:1.2.0'),
        ('mnist:1.0.0', 'mnist:3.0.0'),
    ],
)
def test_a_missing_version_or_config_is_reported_with_the_existing_ones(name, there, others):
    with pytest.raises(UserError) as caught:
        builder(name, str(others))
    message = str(caught.value)
    assert message.startswith(f'config.data.name = {name!r}: ')
    assert message.endswith(f'in {others}: {there}')


def test_a_data_set_with_damaged_metadata_is_a_user_error(tmp_path):
    surrogate(tmp_path, 'my_set', '1.0.0')
    info = tmp_path / 'my_set/1.0.0/dataset_info.json'
    info.write_text(info.read_text()[:100])
    with pytest.raises(UserError, match=r"'my_set': .*or its files are damaged"):
        builder('my_set', str(tmp_path))


def test_generated_data_sets_have_versions(tmp_path):
    assert builder('digits:1.0.0', str(tmp_path)).data_dir == f'{tmp_path}/digits/1.0.0'
    dataset = builder('glyphs/greek:1.*.*', str(tmp_path))
    assert dataset.data_dir == f'{tmp_path}/glyphs/greek/1.0.0'


@pytest.mark.parametrize(
    'name, remedy',
    [
        ('digits', 'remove it, and it will be prepared again as array_record'),
        ('mnist', 'remove it, and it will be prepared again as array_record'),
        (
            'kmnist',
            'remove it, and run this once where TensorFlow is installed, and copy the folder',
        ),
        ('my_set', 'remove it, and prepare it again with the code that made it and file_format='),
    ],
)
def test_a_data_set_in_another_format_is_refused(name, remedy, tmp_path):
    surrogate(tmp_path, name, '1.0.0' if name in ('digits', 'my_set') else '3.0.1')
    (info,) = tmp_path.rglob('dataset_info.json')
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(UserError) as caught:
        builder(name, str(tmp_path))
    message = f'{info.parent} holds tfrecord, which requires TensorFlow to read; {remedy}'
    assert message in str(caught.value)


def test_an_empty_data_dir_is_the_default_of_tfds_and_a_tilde_is_home(monkeypatch, tmp_path):
    assert builder('digits').data_dir == f'{tfds.core.constants.DATA_DIR}/digits/1.0.0'
    monkeypatch.setenv('HOME', str(tmp_path))
    assert builder('digits', '~/data').data_dir == f'{tmp_path}/data/digits/1.0.0'


def test_the_log_level_is_restored(tmp_path):
    before = logging.get_verbosity()
    try:
        logging.set_verbosity(logging.INFO)
        prepare(builder('digits', str(tmp_path)))
        with pytest.raises(UserError):
            builder('nonesuch', str(tmp_path))
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(before)
