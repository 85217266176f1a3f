"""Files on a disk that is full, fails or is disconnected are complete or absent; retries, errors.

There is a test for each kind of failure; test_full_disk.py uses real full disks, test_bucket.py a
bucket.
"""

import errno
import io
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import tenacity

from jaxtrain import storage
from jaxtrain.errors import UserError
from jaxtrain.runs.trackers.tensorboard import Board
from jaxtrain.storage import Appender, Lines, read, read_lines, reason, write
from tests.conftest import ROOT

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """The seconds of each pause between two attempts; the pauses themselves are skipped."""
    pauses = []
    monkeypatch.setattr(tenacity.nap, 'time', SimpleNamespace(sleep=pauses.append))
    return pauses


def failing(monkeypatch, errors: list, owner=pathlib.Path, name: str = 'write_bytes'):
    """Makes the next calls of a function raise these errors, after writing half of the data."""
    whole = getattr(owner, name)

    def call(self, *rest):
        if errors:
            error = errors.pop(0)
            if name == 'write_bytes':
                whole(self, rest[0][: len(rest[0]) // 2])
            raise error
        return whole(self, *rest)

    monkeypatch.setattr(owner, name, call)
    return errors


def names(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# write and read


WRITER = """
import sys
from pathlib import Path
from jaxtrain.storage import write
print('ready', flush=True)
number = 0
while True:
    write(Path(sys.argv[1]), str(number).encode() * 400_000)
    number = (number + 1) % 10
"""


def test_a_writer_that_is_killed_leaves_old_or_new_content(tmp_path):
    place, seen = tmp_path / 'x', set()
    for delay in (0.0, 0.0013, 0.0041, 0.0107, 0.0211, 0.05, 1.0):
        child = subprocess.Popen(
            [sys.executable, '-c', WRITER, place], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert child.stdout.readline() == 'ready\n'
        deadline = time.monotonic() + 30
        while not place.exists() and time.monotonic() < deadline:
            pass
        start = time.perf_counter()
        while time.perf_counter() - start < delay:
            content = place.read_bytes()  # a reader never sees a part
            assert len(content) == 400_000 and len({*content}) == 1
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        content = place.read_bytes()
        assert len(content) == 400_000 and len({*content}) == 1
        seen.add(content[0])
    assert len(seen) > 1


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize('times', [1, 5])
def test_passing_errors_are_retried(number, times, tmp_path, monkeypatch, waits):
    place = tmp_path / 'x'
    write(place, b'old')
    left = failing(monkeypatch, [OSError(number, 'passing')] * times)
    write(place, b'new')
    assert place.read_bytes() == b'new' and not left and names(tmp_path) == {'x'}
    assert len(waits) == times and waits == sorted(waits)
    left = failing(monkeypatch, [OSError(number, 'passing')] * times, name='read_bytes')
    assert read(place) == b'new' and not left


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_lasting_errors_are_reported_in_one_line(number, tmp_path, monkeypatch, waits):
    place, words = tmp_path / 'x', os.strerror(number)
    write(place, b'old content')
    failing(monkeypatch, [OSError(number, words)] * 99)
    with pytest.raises(UserError) as caught:
        write(place, b'the new content')
    message = str(caught.value)
    assert message.startswith(f'{place} ') and words in message and '\n' not in message
    assert 'make room or mend the disk' in message and 'same command again' in message
    assert place.read_bytes() == b'old content'
    assert names(tmp_path) == {'x'}  # the half that was written is removed, to free its space
    assert sum(waits) < 60
    assert bool(waits) == (number != errno.EROFS)


@pytest.mark.parametrize('error', [FileNotFoundError, PermissionError, IsADirectoryError])
def test_a_wrong_name_is_not_retried(error, tmp_path, monkeypatch, waits):
    left = failing(monkeypatch, [error(2, 'x')] * 3)
    with pytest.raises(error):
        write(tmp_path / 'x', b'new')
    assert len(left) == 2 and not waits and not names(tmp_path)


def test_a_missing_folder_is_not_retried(tmp_path, waits):
    with pytest.raises(FileNotFoundError):
        write(tmp_path / 'none' / 'x', b'')
    assert read(tmp_path / 'none' / 'x') is None and not waits


class Coded(Exception):
    """An exception with a code, like those of gcsfs."""

    code = 503


@pytest.mark.parametrize(
    ('error', 'passes'),
    [
        (Coded('backend error'), True),
        (type('Denied', (Exception,), {'code': 401})('no'), False),
        (OSError('Forbidden: https://storage/o\nno storage.objects.get access'), False),
        (OSError('connection reset'), True),
        (TimeoutError('after 30 s'), True),
        (ValueError('Bad Request: invalid'), False),
        (KeyError('x'), False),
        (UserError('reported'), False),
        (KeyboardInterrupt(), False),
        (OSError(errno.ENAMETOOLONG, 'File name too long'), False),
    ],
)
def test_may_pass(error, passes):
    assert storage.may_pass(error) is passes


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (FULL, 'No space left on device'),
        (ValueError('RESOURCE_EXHAUSTED: /a/b: No space left on device [x="y"]'), FULL.strerror),
        (ValueError('first\n  second  line'), 'first second line'),
        (KeyError('step'), "KeyError 'step'"),
        (RuntimeError(), 'RuntimeError'),
        (ValueError('x y ' * 200), ('x y ' * 50)),
    ],
)
def test_reason(error, text):
    assert reason(error) == text


# Appending


def test_lines_are_appended_to_the_complete_ones(tmp_path):
    place = tmp_path / 'x.jsonl'
    for number in range(3):
        lines = Lines(place, durable=bool(number % 2))
        lines.append({'n': number})
        assert [line['n'] for line in read_lines(place)] == [*range(number + 1)]  # before closing
        lines.close()
    assert place.read_bytes() == b'{"n": 0}\n{"n": 1}\n{"n": 2}\n'


@pytest.mark.parametrize('torn', [b'{"n": 1', b'{"n": 1}', b'\x00' * 9, b'\xff'])
def test_an_incomplete_last_line_is_removed(torn, tmp_path):
    place = tmp_path / 'x.jsonl'
    place.write_bytes(b'{"n": 0}\n' + torn)
    assert read_lines(place) == [{'n': 0}]
    lines = Lines(place)
    assert place.read_bytes() == b'{"n": 0}\n'
    lines.append({'n': 2})
    lines.close()
    assert read_lines(place) == [{'n': 0}, {'n': 2}]


def test_lines_of_a_missing_file(tmp_path):
    assert read_lines(tmp_path / 'none') == []


def test_durable_lines_are_on_the_disk(tmp_path, monkeypatch):
    synced = []

    def fsync(number: int) -> None:
        synced.append(pathlib.Path(f'/proc/self/fd/{number}').read_bytes())

    monkeypatch.setattr(os, 'fsync', fsync)
    lines, others = Lines(tmp_path / 'a', durable=True), Lines(tmp_path / 'b')
    lines.append({'n': 1})
    assert synced == [b'{"n": 1}\n']
    others.append({'n': 1})
    assert len(synced) == 1


class Disk:
    """A file on a disk with room for `room` more bytes; it writes as much as fits."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        count = self.file.write(data[: self.room])
        if data and not count:
            raise FULL
        self.room -= count
        return count

    def __getattr__(self, name):
        return getattr(self.file, name)


def limited(lines: Appender, room: int) -> Disk:
    lines._file = Disk(lines._file, room)
    return lines._file


def test_a_line_on_a_full_disk_is_complete_or_absent(tmp_path, waits):
    place = tmp_path / 'x'
    for room in range(9):
        lines = Lines(place, durable=True)
        lines.append({'n': 0})
        limited(lines, room)
        with pytest.raises(UserError, match=f'{place} cannot be written .No space left.*make room'):
            lines.append({'n': 1})
        assert place.read_bytes() == b'{"n": 0}\n'
        assert len(waits) == 5 * (room + 1)
        place.unlink()


def test_a_durable_line_waits_for_room(tmp_path, monkeypatch):
    lines = Lines(tmp_path / 'x', durable=True)
    disk, pauses = limited(lines, 4), []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            disk.room = 999

    monkeypatch.setattr(tenacity.nap, 'time', SimpleNamespace(sleep=sleep))
    lines.append({'n': 1})
    assert read_lines(tmp_path / 'x') == [{'n': 1}] and len(pauses) == 3


def test_other_lines_are_kept_in_memory_without_waiting(tmp_path, waits):
    lines = Lines(tmp_path / 'x')
    lines.append({'n': 0})
    disk = limited(lines, 5)
    for number in (1, 2):
        lines.append({'n': number})
        assert (tmp_path / 'x').read_bytes() == b'{"n": 0}\n'
        disk.room = 5
    disk.room = 999
    lines.append({'n': 3})
    assert [line['n'] for line in read_lines(tmp_path / 'x')] == [0, 1, 2, 3]
    disk.room = 0
    lines.append({'n': 4})
    lines.close()
    assert [line['n'] for line in read_lines(tmp_path / 'x')] == [0, 1, 2, 3]
    assert not waits


def events_in(data: bytes) -> list:
    """The events of a TensorBoard file, after checking its checksums."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    events = []
    while data:
        (size,) = struct.unpack('<Q', data[:8])
        head, body, rest = data[:8], data[12 : 12 + size], data[12 + size :]
        sums = struct.unpack('<II', data[8:12] + rest[:4])
        assert sums == (masked_crc32c(head), masked_crc32c(body))
        events.append(Event.FromString(body))
        data = rest[4:]
    return events


def test_a_board_writes_the_same_events_as_tensorboardx(tmp_path):
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(tmp_path / 'expected'), purge_step=8) as expected:
        for name, value in {'train/loss': 0.1, 'train/accuracy': 0.5}.items():
            expected.add_scalar(name, value, 9)
    board = Board(tmp_path / 'board', 7)
    board.append(9, {'train/loss': 0.1, 'train/accuracy': 0.5})
    board.close()

    def contents(folder) -> list:
        (file,) = folder.glob('events.out.tfevents.*')
        entries = []
        for event in events_in(file.read_bytes()):
            if event.HasField('summary'):
                entries += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            elif not (entries and event.file_version):  # which tensorboardX repeats
                entries.append((event.step, event.file_version, event.session_log.status))
        return entries

    assert contents(tmp_path / 'board') == contents(tmp_path / 'expected')


class FullDisk(io.RawIOBase):
    """A file on a disk that has no room."""

    def __init__(self):
        self.data, self.room = b'', 0

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, 'No space left on device')
        self.data += bytes(data)
        return len(data)


def test_a_board_that_cannot_be_written_does_not_end_the_run(tmp_path):
    board, disk = Board(tmp_path, 0), FullDisk()
    board._writer._py_recordio_writer._writer = io.BufferedWriter(disk)
    for step in range(100):
        board.append(step, {'loss': 1.0})
        board.sync()
    assert disk.data == b''
    disk.room = 1
    board.append(100, {'loss': 2.0})
    board.sync()
    assert [event.step for event in events_in(disk.data)] == [*range(101)]
    disk.room = 0
    for step in range(1000):  # more than any buffer holds
        board.append(step, {'loss': 1.0})
    board.close()
    disk.room = 1  # for the data that is flushed by the garbage collector


# Names


def test_a_bucket_without_its_client_is_reported(tmp_path):
    """In a separate process, which cannot import gcsfs."""
    code = (
        "import sys; sys.modules['gcsfs'] = None\n"
        'from jaxtrain.cli import main\n'
        "sys.exit(main(['evaluate', '--workdir=gs://bucket/run']))"
    )
    child = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'EPATH_USE_TF': 'false'},
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=60,
    )
    (line,) = child.stderr.splitlines()
    assert child.returncode == 2, child.stderr
    assert line.startswith('jaxtrain: gs://bucket/run cannot be reached (')
    assert "pip install 'jaxtrain[gcs]'" in line


def test_names_of_buckets_are_unchanged():
    place = storage.epath.Path('gs://bucket/run')
    assert storage.is_remote(place) and str(storage.absolute(place)) == 'gs://bucket/run'
    local = storage.path('runs/x')
    assert not storage.is_remote(local) and storage.absolute(local) == pathlib.Path.cwd() / local


def test_json_is_read_whole(tmp_path):
    write(tmp_path / 'x', json.dumps({'a': [1]}).encode())
    assert storage.read_json(tmp_path / 'x') == {'a': [1]}
    assert storage.read_json(tmp_path / 'none') is None


@pytest.mark.parametrize('command', ['compare', 'import'])
def test_commands_that_require_a_disk_report_it(command, jaxtrain):
    words = {
        'compare': ['--config=configs/alphabets.py'],
        'import': ['keras', 'x.h5', '--model=vgg16'],
    }[command]
    outcome = jaxtrain(command, *words, '--workdir=gs://bucket/run')
    assert outcome.code == 2 and outcome.err.count('\n') == 1
    assert f'--workdir=gs://bucket/run: {command} writes to a disk' in outcome.err
    assert not pathlib.Path('gs:').exists()
