"""A disk is full or fails: the run waits for space, or ends with one line and can be resumed.

The full disks are real: small file systems in memory, which only root may mount.
"""

import asyncio
import contextlib
import errno
import functools
import gc
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import orbax.checkpoint as ocp
import pytest
import tenacity
from orbax.checkpoint._src.path import atomicity

from jaxtrain.checkpoints import checkpoint
from jaxtrain.checkpoints.manager import Manager
from jaxtrain.errors import UserError
from jaxtrain.runs.events import Timeline
from jaxtrain.runs.folder import RunDir
from jaxtrain.runs.metrics_log import MetricsLog, read_metrics
from tests.checkpoints.test_checkpoint import HOST, abstract, assert_same_bits, make_state
from tests.conftest import python, start
from tests.runs.test_damage import events_of, steps_of
from tests.runs.test_resume import CONFIG, assert_same
from tests.runs.test_wrong_input import complaint, contents

# Unraisable exceptions in Orbax's writers, whose tracebacks a command would print.
pytestmark = pytest.mark.filterwarnings('error::pytest.PytestUnraisableExceptionWarning')

# Checkpoints of about 1.5 MB every 10 steps, with enough lines between two to fill a page.
WIDE = (
    *CONFIG,
    '--config.model.hidden=(300,300)',
    '--config.save_every=10',
    '--config.log_every=1',
)
FULL = os.strerror(errno.ENOSPC)


@pytest.fixture
def disk(tmp_path):
    """`disk(size)` mounts a disk of `size` bytes and returns its folder, or skips the test."""
    mounted = []

    def mount(size: int) -> Path:
        place = tmp_path / f'disk_{len(mounted)}'
        place.mkdir()
        words = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(place)]
        if os.geteuid() or subprocess.run(words, capture_output=True).returncode:
            pytest.skip('only root may mount a disk')
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(['umount', '-l', str(place)], check=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Shortens the pauses between two attempts to save."""
    monkeypatch.setattr(checkpoint, 'PAUSE', 0.02)


def impatient(monkeypatch) -> None:
    """Shortens the pauses of other writes too, where nothing frees space while they wait."""

    def sleep(seconds: float) -> None:
        time.sleep(min(seconds, 0.02))

    monkeypatch.setattr(tenacity.nap, 'time', SimpleNamespace(sleep=sleep))


@pytest.fixture(scope='module')
def straight(tmp_path_factory) -> Path:
    """The same run, on a disk with enough space."""
    from jaxtrain.cli import main

    workdir = tmp_path_factory.mktemp('straight') / 'run'
    assert main(['train', *WIDE, f'--workdir={workdir}']) == 0
    return workdir


@pytest.fixture(scope='module')
def size(straight) -> int:
    """The bytes of a checkpoint."""
    newest = straight / 'checkpoints' / str(steps_of(straight)[-1])
    return sum(path.stat().st_size for path in newest.rglob('*') if path.is_file())


def fill(place: Path, room: int = 0) -> Path:
    """Fills the disk with a file, except for `room` bytes."""
    filler = place / f'filler_{len([*place.iterdir()])}'
    with filler.open('wb', buffering=0) as file:
        while (free := os.statvfs(place).f_bavail * os.statvfs(place).f_frsize - room) > 0:
            with contextlib.suppress(OSError):  # a save may take space at the same time
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free)
    return filler


def assert_nothing_is_half_written(workdir: Path, but: set[str] = frozenset()) -> None:
    there = {path.name for path in workdir.iterdir()}
    expected = {
        'config.json', 'params.tsv', 'metrics.jsonl', 'events.jsonl', 'tensorboard', 'checkpoints',
    }  # fmt: skip
    assert there - but <= expected, there
    for name in ('metrics.jsonl', 'events.jsonl'):
        content = (workdir / name).read_bytes()
        assert not content or content.endswith(b'\n')
        [json.loads(line) for line in content.splitlines()]
    assert not list((workdir / 'checkpoints').glob('*tmp*'))


# Whole runs.


@pytest.mark.slow
@pytest.mark.parametrize('attempts', [1, 2, checkpoint.ATTEMPTS - 1])
def test_a_run_waits_for_room(attempts, disk, size, straight, jaxtrain, monkeypatch):
    """After some attempts to save, a file is removed."""
    place, reports, save = disk(7 * size), [], checkpoint.save
    filler = fill(place, room=int(2.6 * size))

    def save_and_report(manager, step, state, host, report, *rest) -> None:
        def count(why: str) -> None:
            report(why)
            reports.append(why)
            if len(reports) == 1 + attempts:  # the first is of the save before
                filler.unlink()

        save(manager, step, state, host, count, *rest)

    monkeypatch.setattr(checkpoint, 'save', save_and_report)
    outcome = jaxtrain('train', *WIDE, f'--workdir={place}/run')
    assert outcome.code == 0 and not outcome.err, outcome
    # The save fails in the background, and then at the next step until there is space.
    again = [f'step 40 could not be saved ({FULL})'] * attempts
    assert reports == [f'a checkpoint could not be written ({FULL})', *again]
    failed = events_of(place / 'run', 'failed')
    assert [(event['step'], event['why']) for event in failed] == [(40, why) for why in reports]
    shown = [line for line in outcome.out.splitlines() if 'trying again' in line]
    assert shown == [f'{why}; trying again' for why in reports]
    assert_same(place / 'run', straight)
    assert steps_of(place / 'run') == steps_of(straight)


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run(disk, size, straight, jaxtrain, monkeypatch):
    place = disk(7 * size)
    filler, workdir = fill(place, room=int(2.6 * size)), place / 'run'
    line = complaint(jaxtrain('train', *WIDE, f'--workdir={workdir}'))
    assert line == (
        f'jaxtrain: the checkpoint of step 40 cannot be written to {workdir}/checkpoints ({FULL}); '
        'the last one is of step 20. Make room or mend the disk, and start the same command again '
        'to go on'
    )
    assert_nothing_is_half_written(workdir)
    assert steps_of(workdir) == [10, 20]
    assert len(events_of(workdir, 'failed')) == checkpoint.ATTEMPTS
    (end,) = events_of(workdir, 'exit')
    assert end['code'] == 2 and end['why'] in line
    # The run can be used meanwhile, and a start without space removes nothing.
    evaluated = jaxtrain('evaluate', f'--workdir={workdir}', '--checkpoint=last')
    assert evaluated.code == 0 and 'step=20' in evaluated.out
    good = contents(workdir / 'checkpoints')
    with monkeypatch.context() as patch:
        impatient(patch)
        assert FULL in complaint(jaxtrain('train', *WIDE, f'--workdir={workdir}'))
    left = contents(workdir / 'checkpoints')
    assert good.items() <= left.items()
    assert steps_of(workdir) == [10, 20]
    filler.unlink()
    outcome = jaxtrain('train', *WIDE, f'--workdir={workdir}')
    assert outcome.code == 0 and 'resumes after step 20' in outcome.out
    assert_same(workdir, straight)


@pytest.mark.slow
def test_the_output_of_a_process_on_a_full_disk(disk, size):
    """The pauses are the real ones, and the output includes what libraries print."""
    place = disk(7 * size)
    fill(place, room=int(2.6 * size))
    began = time.monotonic()
    child = start('train', *WIDE, f'--workdir={place}/run')
    out, _ = child.communicate(timeout=120)
    print(f'{time.monotonic() - began:.0f} s')
    *rest, line = out.splitlines()
    assert child.returncode == 2 and line.startswith('jaxtrain: the checkpoint of step 40 cannot')
    assert sum('trying again' in text for text in rest) == checkpoint.ATTEMPTS
    for word in ('Traceback', 'ERROR', 'WARNING', 'Exception', 'Error'):
        assert word not in out, out


def test_errors_after_the_first_are_not_logged(caplog):
    """Whether they occur before the loop ends, in its last iteration, or when it is closed."""

    async def fail(after: int) -> None:
        for _ in range(after):
            await asyncio.sleep(0)
        raise OSError(FULL)

    async def save(later: int) -> None:
        await asyncio.gather(*[asyncio.ensure_future(fail(after)) for after in (0, later)])

    for later in range(8):
        loop = asyncio.new_event_loop()
        with pytest.raises(OSError, match=FULL):
            loop.run_until_complete(save(later))
        loop.close()
    gc.collect()
    assert not caplog.records, caplog.text


def filled(monkeypatch, owner, name: str, place: Path, number: int = 1) -> None:
    """Fills the disk completely just before call `number` of a function."""
    function, calls = getattr(owner, name), []

    def call(*args):
        calls.append(args)
        if len(calls) == number:
            fill(place)
        return function(*args)

    monkeypatch.setattr(owner, name, call)


# Moment -> (owner and name of the function before which the disk fills, number of the call, the
# file that the message names).
MOMENTS = {
    'config': (RunDir, 'claim', 1, 'config.json'),
    'log is opened': (MetricsLog, '__init__', 1, 'metrics.jsonl'),
    'a line': (MetricsLog, 'append', 33, 'metrics.jsonl'),
    'test metrics': (RunDir, 'write_npz', 1, 'test.npz'),
    'curves': (RunDir, 'write_curves', 1, 'curves.png'),
    'result': (RunDir, 'write_json', 2, 'result.json'),
}


@pytest.mark.slow
@pytest.mark.parametrize('moment', MOMENTS)
def test_a_full_disk_at_any_moment(moment, disk, size, straight, jaxtrain, monkeypatch):
    owner, function, number, file = MOMENTS[moment]
    place = disk(8 * size)
    workdir = place / 'run'
    with monkeypatch.context() as patch:
        impatient(patch)
        if moment == 'a line':  # so that no checkpoint fails before
            patch.setattr(checkpoint, 'save', lambda *args: None)
        filled(patch, owner, function, place, number)
        line = complaint(jaxtrain('train', *WIDE, f'--workdir={workdir}'))
    assert line == (
        f'jaxtrain: {workdir}/{file} cannot be written ({FULL}); make room or mend the disk, and '
        'start the same command again to go on'
    )
    if (workdir / 'metrics.jsonl').exists():
        assert_nothing_is_half_written(workdir, but={'test.npz', 'curves.png'})
    assert not [path for path in workdir.rglob('.*')]
    assert not (workdir / 'result.json').exists()
    for filler in place.glob('filler*'):
        filler.unlink()
    outcome = jaxtrain('train', *WIDE, f'--workdir={workdir}')
    assert outcome.code == 0, outcome
    assert_same(workdir, straight)


@pytest.mark.slow
def test_the_timeline_waits_for_room(disk, size, straight, jaxtrain, monkeypatch):
    """A timeline without space does not end the run, and no event is lost."""
    place, add, full = disk(8 * size), Timeline.add, []

    def call(timeline, event: str, **values) -> None:
        if event == 'compile':  # nothing else is written at this time
            full.append(fill(place))
            for _ in range(30):  # more than the rest of a page holds
                add(timeline, 'many', text='x' * 200)
            assert not events_of(place / 'run', 'many')[20:]
            full.pop().unlink()
        add(timeline, event, **values)

    monkeypatch.setattr(Timeline, 'add', call)
    outcome = jaxtrain('train', *WIDE, f'--workdir={place}/run')
    assert outcome.code == 0 and not outcome.err, outcome
    assert len(events_of(place / 'run', 'many')) == 30
    assert [event['code'] for event in events_of(place / 'run', 'exit')] == [0]
    assert_same(place / 'run', straight)


# Saves that fail for another reason.


def refuse(monkeypatch, times: int, error: Exception | None = None) -> list:
    """Makes the next `times` saves fail before they begin, in `manager.save`."""
    left = [error or OSError(errno.EIO, os.strerror(errno.EIO))] * times
    save = ocp.CheckpointManager.save

    def call(self, *args, **options):
        if left:
            raise left.pop()
        return save(self, *args, **options)

    monkeypatch.setattr(ocp.CheckpointManager, 'save', call)
    return left


def refuse_in_background(monkeypatch, times: int) -> list:
    """Makes the next `times` saves fail in the background, when they are committed."""
    left = [OSError(errno.EIO, os.strerror(errno.EIO))] * times
    finalize = atomicity.AtomicRenameTemporaryPath.finalize

    async def call(self, *args):
        # The name is a number for a checkpoint, but not for one of its parts.
        if left and self.get_final().name.isdigit():
            raise left.pop()
        return await finalize(self, *args)

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, 'finalize', call)
    return left


def open_with_two(workdir: Path) -> Manager:
    """A manager with checkpoints at 10 and 20, which keeps the newest and the best, step 10."""
    manager = checkpoint.open_manager(workdir, 1, lambda steps: 10 if 10 in steps else None)
    for step in (10, 20):
        save(manager, step, wait=True)
    return manager


def save(manager, step: int, report=lambda why: None, wait: bool = False) -> None:
    checkpoint.save(manager, step, make_state(step), HOST, report, wait)


def assert_holds(workdir: Path, *steps: int) -> None:
    """Asserts that exactly these checkpoints exist, and that all are as they were saved."""
    assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {*map(str, steps)}
    with checkpoint.open_manager(workdir, 9) as manager:
        for step in steps:
            resumed = checkpoint.resume(manager, abstract(make_state()), [step])
            assert_same_bits(resumed.state, make_state(step))


@pytest.mark.parametrize('wait', [False, True])
@pytest.mark.parametrize('times', [1, 2, checkpoint.ATTEMPTS - 1])
def test_a_save_that_fails_is_retried(times, wait, tmp_path, monkeypatch):
    reports = []
    with open_with_two(tmp_path) as manager:
        left = refuse(monkeypatch, times)
        save(manager, 30, reports.append, wait)
        assert checkpoint._settle(manager) is None and not left
        assert reports == ['step 30 could not be saved (Input/output error)'] * times
        assert manager.all_steps() == [10, 30]
    assert_holds(tmp_path, 10, 30)


@pytest.mark.parametrize('way', [refuse, refuse_in_background])
def test_saves_that_fail_remove_nothing(way, tmp_path, monkeypatch):
    with open_with_two(tmp_path) as manager:
        way(monkeypatch, 99)
        with pytest.raises(UserError) as caught:
            save(manager, 30, wait=True)
        assert 'the checkpoint of step 30 cannot be written' in str(caught.value)
        assert '(Input/output error); the last one is of step 20' in str(caught.value)
        assert manager.all_steps() == [10, 20]
    assert_holds(tmp_path, 10, 20)
    monkeypatch.undo()
    with checkpoint.open_manager(tmp_path, 1, lambda steps: 10) as manager:
        save(manager, 30)
    assert_holds(tmp_path, 10, 30)


@pytest.mark.parametrize('times', [1, 2, checkpoint.ATTEMPTS])
def test_a_save_that_failed_in_the_background_is_reported_at_the_next(times, tmp_path, monkeypatch):
    reports = []
    with open_with_two(tmp_path) as manager:
        left = refuse_in_background(monkeypatch, times)
        save(manager, 30, reports.append)
        save(manager, 40, reports.append)
        # The save has not only begun: the checkpoint is on the disk.
        assert (tmp_path / 'checkpoints' / '40').exists() and not left
        again = ['step 40 could not be saved (Input/output error)'] * (times - 1)
        assert reports == ['a checkpoint could not be written (Input/output error)', *again]
    assert_holds(tmp_path, 10, 40)


def test_a_last_save_that_failed_is_noticed(tmp_path, monkeypatch):
    with open_with_two(tmp_path) as manager:
        refuse_in_background(monkeypatch, 1)
        save(manager, 30)
        assert checkpoint._settle(manager)
        assert checkpoint._settle(manager) is None  # it is reported once
        save(manager, 30, wait=True)
    assert_holds(tmp_path, 10, 30)


def test_the_first_of_all_saves_fails(tmp_path, monkeypatch):
    with checkpoint.open_manager(tmp_path, 1) as manager:
        refuse_in_background(monkeypatch, 99)
        with pytest.raises(UserError, match='there is no earlier one. Make room'):
            save(manager, 10, wait=True)
    assert_holds(tmp_path)


def test_an_error_is_not_replaced_by_that_of_a_save(tmp_path, monkeypatch):
    """The first error is the one that is raised, even if a save in the background fails too."""
    with pytest.raises(UserError, match='what was wrong'), open_with_two(tmp_path) as manager:
        refuse_in_background(monkeypatch, 1)
        save(manager, 30)
        raise UserError('what was wrong')
    with pytest.raises(OSError), checkpoint.open_manager(tmp_path, 1) as manager:
        refuse_in_background(monkeypatch, 1)
        save(manager, 40)


def left_of_a_save(workdir: Path) -> list[Path]:
    return list((workdir / 'checkpoints').glob('*tmp*'))


def test_the_remains_of_a_failed_save_are_removed_for_lines(disk, monkeypatch):
    """Otherwise they would fill the disk until the next save, and lines are written before it."""
    place = disk(4 * 2**20)
    impatient(monkeypatch)
    with open_with_two(place / 'run') as manager:
        log = MetricsLog(place / 'run', 20, functools.partial(checkpoint.make_room, manager))
        refuse_in_background(monkeypatch, 1)
        save(manager, 30)
        while manager.is_saving_in_progress():
            time.sleep(0.01)
        assert left_of_a_save(place / 'run')
        fill(place)
        for step in range(21, 80):
            log.append(step, 'train', {f'metric_{n}': 1.0 for n in range(20)})
        log.close()
        assert not left_of_a_save(place / 'run')
        assert checkpoint._settle(manager), 'the next save still reports it'
    assert [line['step'] for line in read_metrics(place / 'run')] == [*range(21, 80)]
    assert_holds(place / 'run', 10, 20)


def test_a_save_in_progress_is_not_removed(tmp_path, monkeypatch):
    with open_with_two(tmp_path) as manager:
        monkeypatch.setattr(ocp.CheckpointManager, 'is_saving_in_progress', lambda self: True)
        (tmp_path / 'checkpoints' / '30.orbax-checkpoint-tmp').mkdir()
        checkpoint.make_room(manager)
        assert left_of_a_save(tmp_path)
        monkeypatch.undo()
        checkpoint.make_room(manager)
        assert not left_of_a_save(tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from orbax.checkpoint._src.path import atomicity
from jaxtrain.checkpoints import checkpoint
from jaxtrain.checkpoints.process import tame_orbax
from tests.runs.test_full_disk import open_with_two, save

def kill_at(owner, name, number):
    function, calls = getattr(owner, name), []
    def call(*args, **options):
        calls.append(args)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    setattr(owner, name, call)

tame_orbax()
workdir, moment = Path(sys.argv[1]), sys.argv[2]
with open_with_two(workdir) as manager:
    if moment == 'begun':
        save(manager, 30)
        os.kill(os.getpid(), signal.SIGKILL)
    if moment.startswith('part'):
        kill_at(atomicity.AtomicRenameTemporaryPath, 'finalize', int(moment[-1]))
    else:
        kill_at(manager._checkpoint_deleter, 'delete_steps', 1)
    save(manager, 30, wait=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize('moment', ['begun', 'part 1', 'part 2', 'part 3', 'whole'])
def test_killed_in_the_middle_of_a_save(moment, tmp_path):
    child = python('-c', KILLED, tmp_path, moment)
    assert child.code == -signal.SIGKILL, child.err
    whole = [10, 20, 30] if moment == 'whole' else [10, 20]
    assert steps_of(tmp_path) == whole
    with checkpoint.open_manager(tmp_path, 9) as manager:
        for step in whole:
            resumed = checkpoint.resume(manager, abstract(make_state()), [step])
            assert_same_bits(resumed.state, make_state(step))
    with checkpoint.open_manager(tmp_path, 1, lambda steps: 10) as manager:
        save(manager, 40)
    assert steps_of(tmp_path) == [10, 40]
    shutil.rmtree(tmp_path / 'checkpoints')
