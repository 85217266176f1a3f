"""Tests of TFDS's mnist, fashion_mnist, cifar10 and cifar100, prepared without TensorFlow.

The archives are surrogates (tests/support/surrogates.py): official layout, few images. The results
are compared with those of TFDS with TensorFlow, which wrote golden/tfds_digests.json.
"""

import functools
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import gcs_utils

from jaxtrain.data.datasets.download import manual_dir
from jaxtrain.data.datasets.official import OFFICIAL
from jaxtrain.data.datasets.prepare import builder, prepare
from jaxtrain.errors import UserError
from tests.conftest import TINY
from tests.data.datasets.test_builders import Terminal
from tests.support import surrogates

GOLDEN = json.loads(Path(__file__).parents[2].joinpath('golden/tfds_digests.json').read_text())
REGISTERED = {name: tfds.builder_cls(name).url_infos for name in surrogates.NAMES}
MANUAL = {name: f'downloads/manual/{name}' for name in surrogates.NAMES}


class Server:
    """A server of a folder on 127.0.0.1 that records the names of the requested files."""

    def __init__(self, folder: Path):
        self.requested = requested = []

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *args):
                requested.append(self.path.rpartition('/')[2])

        handler = functools.partial(Handler, directory=str(folder))
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope='module')
def archives(tmp_path_factory) -> Path:
    """A folder that contains the archives of each data set in a folder of its name."""
    folder = tmp_path_factory.mktemp('archives')
    for name in surrogates.NAMES:
        surrogates.write(name, folder / name)
    return folder


@pytest.fixture
def server(archives):
    server = Server(archives)
    yield server
    server.close()


def accept(patch: pytest.MonkeyPatch, name: str, folder: Path, url: str = '') -> None:
    """Register the surrogates in a folder as the official archives, served from `url` if given."""
    cls = OFFICIAL[name]
    infos = surrogates.url_infos(cls, folder)
    if url:
        infos = {f'{url}/{name}/{info.filename}': info for info in infos.values()}
        if name.startswith('cifar'):
            moved = builder(name, str(folder))._cifar_info._replace(url=next(iter(infos)))
            patch.setattr(cls, '_cifar_info', moved)
        else:
            patch.setattr(cls, 'URL', f'{url}/{name}/')
    patch.setattr(cls, 'url_infos', infos)


def by_hand(archives: Path, name: str, data_dir: Path) -> Path:
    """Put the archives into the folder that the error names, and return that folder."""
    return Path(shutil.copytree(archives / name, data_dir / MANUAL[name], dirs_exist_ok=True))


def no_network(patch: pytest.MonkeyPatch) -> None:
    def refuse(what, **options):
        raise AssertionError(f'network access to {what}')

    patch.setattr(requests, 'get', refuse)
    patch.setattr(gcs_utils, 'is_dataset_on_gcs', refuse)  # called by TFDS before it prepares


def refusal(name: str, data_dir: Path) -> str:
    """Return the one-line error of preparing, which must leave only archives behind."""
    with pytest.raises(UserError) as caught:
        prepare(builder(name, str(data_dir)))
    message = str(caught.value)
    assert '\n' not in message
    assert not builder(name, str(data_dir)).is_prepared()
    left = {path.relative_to(data_dir).as_posix() for path in data_dir.rglob('*') if path.is_file()}
    locks = {path for path in left if path.endswith('.lock')}
    assert {path.rpartition('/')[0] for path in left - locks} <= {MANUAL[name]}
    assert not [path for path in left if path.endswith('.part')]
    assert not list(data_dir.rglob('incomplete*'))
    return message


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, archives) -> Path:
    """A data_dir with all four: two downloaded, two from archives placed by hand."""
    folder = tmp_path_factory.mktemp('prepared')
    server = Server(archives)
    with pytest.MonkeyPatch.context() as patch:
        for name in ('mnist', 'cifar100'):
            accept(patch, name, archives / name, server.url)
            prepare(builder(name, str(folder)))
        server.close()
        no_network(patch)
        for name in ('fashion_mnist', 'cifar10'):
            by_hand(archives, name, folder)
            accept(patch, name, archives / name)
            prepare(builder(name, str(folder)))
    return folder


@pytest.mark.parametrize('name', surrogates.NAMES)
def test_pixels_labels_ids_and_order_are_those_of_tfds_with_tensorflow(name, prepared):
    dataset = tfds.builder(name, data_dir=str(prepared))  # finds TFDS's class
    assert type(dataset).__module__.startswith('tensorflow_datasets.image_classification')
    features = dataset.info.features

    def decode(data: bytes) -> np.ndarray:
        grey = features['image'].shape[-1] == 1
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
        )
        return image.reshape(features['image'].shape)

    skip = {'image': tfds.decode.SkipDecoding()}
    assert GOLDEN[name] == {
        'full_name': dataset.info.full_name,
        'names': {key: features[key].names for key in features if key.endswith('label')},
        'splits': {
            split: surrogates.digest(dataset.as_data_source(split, decoders=skip), decode)
            for split in sorted(dataset.info.splits)
        },
    }


def test_plain_tfds_reads_them_without_jaxtrain_and_tensorflow(prepared):
    code = """
import sys
import tensorflow_datasets as tfds
for name in sys.argv[2:]:
    dataset = tfds.builder(name, data_dir=sys.argv[1])
    for split, info in dataset.info.splits.items():
        source = dataset.as_data_source(split)
        kinds = {(row['image'].shape, str(row['image'].dtype)) for row in source}
        print(name, split, len(source), info.num_examples, info.num_shards, *kinds)
print({'jaxtrain', 'tensorflow'} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, '-c', code, str(prepared), *surrogates.NAMES],
        env={**os.environ, 'PYTHONPATH': ''},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    grey, coloured = surrogates.NAMES[:2], surrogates.NAMES[2:]
    shapes = {**dict.fromkeys(grey, (28, 28, 1)), **dict.fromkeys(coloured, (32, 32, 3))}
    *lines, imported = done.stdout.splitlines()
    assert imported == 'set()'
    assert lines == [
        f'{name} {split} {size} {size} 1 {(shapes[name], "uint8")}'
        for name in surrogates.NAMES
        for split, size in (('train', surrogates.TRAIN), ('test', surrogates.TEST))
    ]


def test_tensorflow_is_not_imported(prepared):
    if importlib.util.find_spec('tensorflow') is not None:
        pytest.skip('TensorFlow is installed here')
    assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize('name', surrogates.NAMES)
def test_unofficial_archives_are_refused(name, archives, tmp_path, monkeypatch):
    """Only the network is patched: the expected checksums are those of TFDS."""
    no_network(monkeypatch)
    folder = by_hand(archives, name, tmp_path)
    message = refusal(name, tmp_path)
    refused = [
        (url, info)
        for url, info in REGISTERED[name].items()
        if f'{folder / info.filename} is damaged or not the official file' in message
    ]
    assert len(refused) == 1, message
    url, info = refused[0]
    assert f'config.data.name = {name!r}' in message
    assert f'its SHA-256 is not {info.checksum}; remove it' in message
    assert message.endswith(f'replace it with {url}')


@pytest.mark.parametrize(
    'name, archive', [('mnist', 't10k-images-idx3-ubyte.gz'), ('cifar10', 'cifar-10-binary.tar.gz')]
)
def test_a_truncated_archive_is_refused_and_a_complete_one_works(
    name, archive, archives, tmp_path, monkeypatch
):
    no_network(monkeypatch)
    accept(monkeypatch, name, archives / name)
    path = by_hand(archives, name, tmp_path) / archive
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert f'{path} is damaged or not the official file' in refusal(name, tmp_path)
    path.write_bytes(whole)
    prepare(builder(name, str(tmp_path)))
    assert len(builder(name, str(tmp_path)).as_data_source('test')) == surrogates.TEST


def test_without_a_network_the_error_gives_the_files_and_their_folder(
    archives, tmp_path, monkeypatch
):
    server = Server(archives)
    server.close()  # connections are refused from now on
    accept(monkeypatch, 'mnist', archives / 'mnist', server.url)
    message = refusal('mnist', tmp_path)
    url = f'{server.url}/mnist/train-images-idx3-ubyte.gz'
    assert message.startswith(f"config.data.name = 'mnist': cannot download {url} (ConnectionError")
    folder, _, urls = message.partition('and put them into ')[2].partition(': ')
    names = [path.name for path in (archives / 'mnist').iterdir()]
    assert sorted(urls.split()) == sorted(f'{server.url}/mnist/{name}' for name in names)

    # Following the instruction works, also one file at a time.
    first, *others = (url.rpartition('/')[2] for url in urls.split())
    Path(folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(archives / 'mnist' / first, folder)
    assert first not in refusal('mnist', tmp_path)  # because it exists now
    for name in others:
        shutil.copy(archives / 'mnist' / name, folder)
    prepare(builder('mnist', str(tmp_path)))
    assert len(builder('mnist', str(tmp_path)).as_data_source('train')) == surrogates.TRAIN


def test_the_command_ends_with_that_error_and_exit_code_2(
    archives, tmp_path, monkeypatch, jaxtrain
):
    server = Server(archives)
    server.close()
    accept(monkeypatch, 'cifar10', archives / 'cifar10', server.url)
    outcome = jaxtrain(
        *('train', f'--config={TINY}', f'--workdir={tmp_path}/run', '--config.data.name=cifar10'),
        f'--config.data.dir={tmp_path}/data',
    )
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert f'put them into {tmp_path}/data/downloads/manual/cifar10: {server.url}/cifar10/' in line


def test_only_missing_archives_are_downloaded(archives, tmp_path, monkeypatch, server):
    accept(monkeypatch, 'mnist', archives / 'mnist', server.url)
    folder = by_hand(archives, 'mnist', tmp_path)
    (folder / 'train-labels-idx1-ubyte.gz').unlink()
    prepare(builder('mnist', str(tmp_path)))
    assert server.requested == ['train-labels-idx1-ubyte.gz']


def test_the_page_of_a_proxy_is_not_kept_and_the_next_try_works(archives, tmp_path, monkeypatch):
    wrong = tmp_path / 'wrong'
    shutil.copytree(archives / 'mnist', wrong / 'mnist')
    (wrong / 'mnist' / 'train-labels-idx1-ubyte.gz').write_text('<html>Please log in</html>')
    server = Server(wrong)
    accept(monkeypatch, 'mnist', archives / 'mnist', server.url)
    data_dir = tmp_path / 'data'
    data_dir.mkdir()
    message = refusal('mnist', data_dir)
    assert f'{server.url}/mnist/train-labels-idx1-ubyte.gz (the download has 26 bytes' in message
    kept = [path.name for path in (data_dir / MANUAL['mnist']).iterdir()]
    assert kept == ['train-images-idx3-ubyte.gz']  # the file before it, which was verified
    shutil.copytree(archives / 'mnist', wrong / 'mnist', dirs_exist_ok=True)
    prepare(builder('mnist', str(data_dir)))
    server.close()
    assert len(builder('mnist', str(data_dir)).as_data_source('train')) == surrogates.TRAIN


def test_a_missing_url_is_reported_with_its_http_status(archives, tmp_path, monkeypatch, server):
    accept(monkeypatch, 'cifar100', archives / 'cifar100', f'{server.url}/moved')
    assert '(404 Client Error' in refusal('cifar100', tmp_path)


def test_an_unwritable_folder_is_a_user_error(archives, tmp_path, monkeypatch, server):
    accept(monkeypatch, 'mnist', archives / 'mnist', server.url)
    (tmp_path / 'downloads').mkdir()
    (tmp_path / 'downloads' / 'manual').write_text('not a folder')
    with pytest.raises(UserError, match=r'config\.data\.dir: cannot write .*Not a directory'):
        prepare(builder('mnist', str(tmp_path)))


def test_mnist_and_fashion_mnist_have_separate_archive_folders(tmp_path):
    """Their files have the same names."""
    folders = {manual_dir(builder(name, str(tmp_path))) for name in ('mnist', 'fashion_mnist')}
    assert folders == {tmp_path / MANUAL['mnist'], tmp_path / MANUAL['fashion_mnist']}
    files = [{info.filename for info in REGISTERED[name].values()} for name in MANUAL]
    assert files[0] == files[1]


def test_a_builder_that_waited_for_another_process_has_the_label_names(
    archives, tmp_path, monkeypatch
):
    by_hand(archives, 'cifar100', tmp_path)
    accept(monkeypatch, 'cifar100', archives / 'cifar100')
    waits, writes = (builder('cifar100', str(tmp_path)) for _ in range(2))
    prepare(writes)
    prepare(waits)
    for dataset in (waits, writes):
        assert dataset.info.features['label'].names == GOLDEN['cifar100']['names']['label']
        assert dataset.info.splits['train'].num_examples == surrogates.TRAIN


@pytest.mark.parametrize(
    'stream, quiet, seen', [(Terminal, False, True), (Terminal, True, False), (io.StringIO, 0, 0)]
)
def test_progress_bars_are_shown_only_on_a_terminal_unless_quiet(
    stream, quiet, seen, archives, tmp_path, monkeypatch, server
):
    accept(monkeypatch, 'cifar10', archives / 'cifar10', server.url)
    monkeypatch.setattr(sys, 'stderr', stream())
    prepare(builder('cifar10', str(tmp_path)), quiet=bool(quiet))
    written = sys.stderr.getvalue()
    titles = ('cifar-10-binary.tar.gz', 'cifar10 train', 'cifar10 test')
    assert all((title in written) == bool(seen) for title in titles)
    assert bool(written) == bool(seen)


@pytest.mark.parametrize('name', surrogates.NAMES)
def test_the_classes_differ_from_those_of_tfds_only_in_reading(name):
    """A version of TFDS with other archives, versions or features must not go unnoticed."""
    cls, parent = OFFICIAL[name], tfds.builder_cls(name)
    assert issubclass(cls, parent) and cls is not parent
    assert (cls.VERSION, cls.url_infos, cls.name) == (parent.VERSION, REGISTERED[name], name)
