"""Runs in a bucket have the results of runs on a disk, also when killed, damaged or refused.

The bucket is the fake server of gcs.py. Commands run in a child process with its environment,
several in one process to save time; the tests then read and change the objects in the bucket.
"""

import json
import os
import time
from pathlib import Path

import pytest

from tests.conftest import TINY, Outcome, python
from tests.runs.test_damage import events_of
from tests.runs.test_resume import CONFIG, STEPS, assert_same
from tests.support.forked import Process
from tests.support.gcs import FakeGcs
from tests.test_storage import events_in

RUN = 'gs://bucket/run'
TRAIN = ['train', *CONFIG, f'--workdir={RUN}']
# TensorStore prints this word in each process without credentials.
ANONYMOUS = 'google_auth_provider'

CHILD = """
import contextlib, io, json, sys
from jaxtrain.cli import main
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def begin(gcs: FakeGcs, *commands: list[str]) -> Process:
    words = ['-c', CHILD, json.dumps([[*map(str, words)] for words in commands])]
    return Process(words, {**os.environ, **gcs.environment})


def call(gcs: FakeGcs, *commands: list[str], timeout: float = 240) -> list[Outcome]:
    """Runs commands, one after the other in one process."""
    child = begin(gcs, *commands)
    out, err = child.communicate(timeout=timeout)
    assert child.returncode == 0, err
    # This includes the output of libraries that do not write through Python.
    rest = [line for line in err.splitlines() if line and ANONYMOUS not in line]
    assert not rest, err
    return [Outcome(*json.loads(line)) for line in out.splitlines()]


def finished(outcome: Outcome) -> Outcome:
    assert outcome.code == 0 and not outcome.err, outcome
    return outcome


def complaint(outcome: Outcome) -> str:
    """The one line of a command that ended with exit code 2."""
    (line,) = outcome.err.splitlines()
    assert outcome.code == 2 and line.startswith('jaxtrain: '), outcome
    return line


def names(gcs: FakeGcs, folder: str = '') -> set[str]:
    """The names of the objects in a folder of the run."""
    prefix = f'run/{folder}'
    return {name.removeprefix(prefix) for _, name in gcs.objects if name.startswith(prefix)}


def steps(gcs: FakeGcs, committed: bool = True) -> list[int]:
    folders = {name.split('/')[0] for name in names(gcs, 'checkpoints/')}
    whole = [n for n in folders if not committed or ('bucket', mark(n)) in gcs.objects]
    return sorted(map(int, whole))


def mark(step: int | str) -> str:
    return f'run/checkpoints/{step}/commit_success.txt'


def remove(gcs: FakeGcs, *parts: str) -> None:
    """Removes the objects of the run whose names begin with one of `parts`."""
    for bucket, name in [*gcs.objects]:
        if name.startswith(tuple(f'run/{part}' for part in parts)):
            del gcs.objects[bucket, name]


def download(gcs: FakeGcs, folder: Path) -> Path:
    for (_, name), data in gcs.objects.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return folder / 'run'


SAVED = """
import json
from jaxtrain import storage
from jaxtrain.checkpoints import checkpoint, checkpoint_list
from jaxtrain.checkpoints.process import tame_orbax
from jaxtrain.runs.folder import RunDir
from tests.checkpoints.test_checkpoint import abstract, assert_same_bits, make_state, save

tame_orbax()
place = storage.path('gs://bucket/run')
folder = RunDir(place)
folder.check_writable()
folder.claim({'keep': 3, 'best_metric': 'loss'})
with checkpoint.open_manager(place, 3) as manager:
    for step in (10, 20, 30):
        save(manager, step, make_state(step))
storage.write(place / 'checkpoints' / '30' / 'host' / 'metadata', b'damaged')
(place / 'checkpoints' / '20' / 'commit_success.txt').unlink()
log = folder.open_metrics(0)
for step in (10, 30):
    log.append(step, 'val', {'loss': float(step)})
log.close()
summary = [checkpoint_list.saved_steps(place), str(checkpoint_list.find(place, 'best', ''))]
with checkpoint.open_manager(place, 3) as manager:
    resumed = checkpoint.resume(manager, abstract(make_state()), [30, 10])
    assert_same_bits(resumed.state, make_state(10))
    summary += [resumed.step, [*resumed.damaged], manager.all_steps()]
print(json.dumps(summary))
"""


def in_process(gcs: FakeGcs, code: str, *words: str) -> str:
    """The output of a program that runs with the bucket's environment."""
    done = python('-c', code, *words, **gcs.environment)
    assert done.code == 0, done.err
    return done.out


def test_checkpoints_in_a_bucket():
    """20 is unfinished and 30 damaged: 10 is used, 30 is set aside, and 20 is removed."""
    with FakeGcs() as gcs:
        result = json.loads(in_process(gcs, SAVED))
        assert result == [[10, 30], f'{RUN}/checkpoints/10', 10, [30], [10]]
        assert steps(gcs, committed=False) == [10]
        assert gcs.objects['bucket', 'run/damaged/30/host/metadata'] == b'damaged'
        assert names(gcs, 'damaged/30/') >= {'commit_success.txt', 'state/manifest.ocdbt'}
        lines = gcs.objects['bucket', 'run/metrics.jsonl'].splitlines()
        assert [json.loads(line)['step'] for line in lines] == [10, 30]


LISTED = """
import sys, urllib.request
from jaxtrain import storage

place = storage.path('gs://bucket/run')
seen = [sorted(path.name for path in place.iterdir())]
url = sys.argv[1] + '/upload/storage/v1/b/bucket/o?uploadType=media&name=run/b'
urllib.request.urlopen(urllib.request.Request(url, b'x', method='POST'))
print(*seen, sorted(path.name for path in place.iterdir()), (place / 'b').exists())
"""


def test_listings_are_not_cached():
    """gcsfs's cache would hide what another process, or TensorStore, has changed since."""
    with FakeGcs() as gcs:
        gcs.objects['bucket', 'run/a'] = b'x'
        assert in_process(gcs, LISTED, gcs.url) == "['a'] ['a', 'b'] True\n"


@pytest.fixture(scope='module')
def local(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('local') / 'run'


@pytest.fixture(scope='module')
def trained(local) -> tuple[FakeGcs, list[Outcome]]:
    """The same run in a bucket and on a disk, and commands that use the run in the bucket."""
    with FakeGcs() as gcs:
        start = [f'--config={TINY}:linear', f'--config.init_from={RUN}', '--config.steps=5']
        outcomes = call(
            gcs,
            TRAIN,
            ['train', *CONFIG, f'--workdir={local}'],
            ['evaluate', f'--workdir={RUN}', '--checkpoint=last'],
            ['evaluate', f'--workdir={local}', '--checkpoint=last'],
            ['train', *start, f'--workdir={local.parent / "linear"}'],
            [*TRAIN],
            ['evaluate', '--workdir=gs://bucket/none'],
            ['evaluate', '--workdir=gs://other/run'],
            ['predict', f'--workdir={RUN}', local / 'curves.png'],
        )
        yield gcs, outcomes


@pytest.fixture
def gcs(trained):
    """A bucket with a copy of that run, which a test may change."""
    with FakeGcs() as server:
        server.objects.update(trained[0].objects)
        yield server


def stopped(gcs: FakeGcs) -> None:
    """Removes what a run writes at its end, as if it had been killed before."""
    remove(gcs, 'result.json', 'test.npz', 'curves.png')


@pytest.mark.slow
def test_a_run_in_a_bucket_equals_one_on_a_disk(trained, local, tmp_path):
    gcs, (in_bucket, on_disk, *_) = trained
    table = [[line for line in finished(o).out.splitlines()] for o in (in_bucket, on_disk)]
    assert table[0][:10] == table[1][:10]
    assert_same(download(gcs, tmp_path), local)


@pytest.mark.slow
def test_its_files_are_objects(trained, local):
    gcs, _ = trained
    top = {name.split('/')[0] for name in names(gcs)}
    assert top == {path.name for path in local.iterdir()} | {'predictions.jsonl'}
    assert {'config.json', 'metrics.jsonl', 'events.jsonl', 'result.json', 'curves.png'} <= top
    assert gcs.objects['bucket', 'run/curves.png'].startswith(b'\x89PNG')
    assert steps(gcs) == steps(gcs, committed=False) == [49, 56, 60]
    assert not [name for name in names(gcs) if 'tmp' in name or '/.' in name or name[0] == '.']
    (board,) = names(gcs, 'tensorboard/')
    events = events_in(gcs.objects['bucket', f'run/tensorboard/{board}'])
    logged = [event.step for event in events if event.HasField('summary')]
    assert logged == [line['step'] for line in map(json.loads, (local / 'metrics.jsonl').open())]
    ends = [json.loads(line) for line in gcs.objects['bucket', 'run/events.jsonl'].splitlines()]
    assert (ends[0]['event'], ends[-1]['event'], ends[-1]['code']) == ('start', 'exit', 0)


@pytest.mark.slow
def test_it_is_evaluated_and_started_from(trained, local):
    gcs, (_, _, in_bucket, on_disk, linear, again, none, other, predicted) = trained
    assert finished(in_bucket).out == finished(on_disk).out
    assert finished(linear).code == 0
    restored = json.loads((local.parent / 'linear' / 'restore.json').read_text())
    assert restored['checkpoint'].startswith(f'{RUN}/checkpoints/')
    assert f'{RUN} is finished; its result.json stands' in finished(again).out
    assert f'written to {RUN}/predictions.jsonl' in finished(predicted).out
    (line,) = gcs.objects['bucket', 'run/predictions.jsonl'].splitlines()
    assert json.loads(line)['class']
    assert "'gs://bucket/none' is not a run directory" in complaint(none)
    assert 'gs://other/run' in complaint(other)


@pytest.mark.slow
def test_killed_and_refused_now_and_then(local, trained, tmp_path):
    """The run is killed once checkpoints exist; each kind of request is refused a few times."""
    with FakeGcs() as gcs:
        for pattern in ('POST .*metrics', 'POST .*checkpoints/7/', 'GET .*config', 'DELETE '):
            gcs.fail(pattern, times=1)
        child = begin(gcs, TRAIN)
        deadline = time.monotonic() + 120
        while not [s for s in steps(gcs) if s >= 14] and time.monotonic() < deadline:
            time.sleep(0.002)
        child.kill()
        child.communicate(timeout=30)
        assert steps(gcs) and 'result.json' not in names(gcs)
        reached = max(steps(gcs))
        for pattern in ('GET ', 'POST .*checkpoints/', 'POST .*events', 'DELETE .*checkpoints'):
            gcs.fail(pattern, times=1, status=429 if pattern == 'GET ' else 503)
        (outcome,) = call(gcs, TRAIN)
        assert f'resumes after step {reached}' in finished(outcome).out
        assert not [left for _, left, _ in gcs._failures if left]
        assert steps(gcs) == steps(gcs, committed=False) == [49, 56, 60]
        assert_same(download(gcs, tmp_path), local)


@pytest.mark.slow
def test_damaged_and_unfinished_checkpoints(gcs, local, tmp_path):
    """The newest is unfinished, the second damaged and set aside, and the third is used."""
    stopped(gcs)
    del gcs.objects['bucket', mark(60)]
    before = {name: gcs.objects['bucket', f'run/checkpoints/56/{name}'] for name in
              names(gcs, 'checkpoints/56/')}  # fmt: skip
    host = 'run/checkpoints/56/host/metadata'
    before['host/metadata'] = gcs.objects['bucket', host][:-9]
    gcs.objects['bucket', host] = before['host/metadata']
    only_reads, outcome = call(gcs, ['evaluate', f'--workdir={RUN}', '--checkpoint=last'], TRAIN)
    assert f'{RUN}/checkpoints/56 cannot be read' in complaint(only_reads)
    assert f'{mark(60)}' not in names(gcs)
    output = finished(outcome).out
    assert 'the checkpoint of step 56 is damaged' in output and 'resumes after step 49' in output
    assert 'was put aside in damaged/56' in output
    aside = {name: gcs.objects['bucket', f'run/damaged/56/{name}'] for name in
             names(gcs, 'damaged/56/')}  # fmt: skip
    assert aside == before
    assert steps(gcs) == steps(gcs, committed=False) == [49, 56, 60]
    workdir = download(gcs, tmp_path)
    assert [event['step'] for event in events_of(workdir, 'damaged')] == [56]
    assert_same(workdir, local)


@pytest.mark.slow
def test_setting_aside_is_interrupted(gcs, local, tmp_path):
    """The remains do not count as a checkpoint, and the next start removes them."""
    stopped(gcs)
    host = 'run/checkpoints/60/host/metadata'
    gcs.objects['bucket', host] = gcs.objects['bucket', host][:-9]
    gcs.fail('POST .*damaged/60/_CHECKPOINT', times=99, status=403)
    refused, outcome = call(gcs, TRAIN), None
    assert 'gs://bucket/run/damaged/60/_CHECKPOINT_METADATA' in complaint(refused[0])
    assert 'check its permissions' in refused[0].err
    assert steps(gcs) == [49, 56] and steps(gcs, committed=False) == [49, 56, 60]
    gcs._failures.clear()
    (outcome,) = call(gcs, TRAIN)
    assert 'resumes after step 56' in finished(outcome).out
    assert 'damaged' not in outcome.out
    assert steps(gcs) == steps(gcs, committed=False) == [49, 56, 60]
    assert_same(download(gcs, tmp_path), local)


@pytest.mark.slow
def test_a_save_that_is_refused_leaves_nothing(local, trained, tmp_path):
    with FakeGcs() as gcs:
        gcs.fail('POST .*checkpoints/20/commit_success', times=1, status=403)
        (outcome,) = call(gcs, TRAIN)
        assert 'a checkpoint could not be written (' in finished(outcome).out
        # It was removed at the next step, and not together with checkpoints that expire.
        sent = [asked for method, asked in gcs.requests if method == 'DELETE']
        order = [sent.index(f'/storage/v1/b/bucket/o/run/checkpoints/{step}/host/metadata')
                 for step in (20, 7)]  # fmt: skip
        assert order == sorted(order)
        assert steps(gcs) == steps(gcs, committed=False) == [49, 56, 60]
        workdir = download(gcs, tmp_path)
        assert [event['step'] for event in events_of(workdir, 'failed')] == [21]
        assert_same(workdir, local)


@pytest.mark.slow
def test_a_bucket_that_denies_access(gcs, local):
    """To all requests, and then only to those that write."""
    stopped(gcs)
    before = dict(gcs.objects)
    commands = (
        TRAIN,
        ['evaluate', f'--workdir={RUN}'],
        ['predict', f'--workdir={RUN}', local / 'curves.png'],
        ['train', f'--config={TINY}:linear', f'--config.init_from={RUN}']
        + [f'--workdir={local.parent / "never"}'],
    )
    gcs.fail('.*', times=10**9, status=403)
    began = time.monotonic()
    for outcome in call(gcs, *commands):
        line = complaint(outcome)
        assert 'gs://bucket/run' in line and 'Forbidden' in line
    assert time.monotonic() - began < 60
    gcs._failures.clear()
    gcs.fail('(POST|PUT|DELETE)', times=10**9, status=403)
    train, evaluate = call(gcs, TRAIN, ['evaluate', f'--workdir={RUN}'])
    assert f'--workdir={RUN} cannot be written (Forbidden' in complaint(train)
    assert finished(evaluate).out.startswith('test  step=60')
    assert dict(gcs.objects) == before


@pytest.mark.slow
def test_a_bucket_that_denies_access_in_the_middle_of_a_run(local, trained, tmp_path):
    with FakeGcs() as gcs:
        gcs.fail('POST .*checkpoints/(14|2|4)', times=10**9, status=403)
        (outcome,) = call(gcs, TRAIN)
        line = complaint(outcome)
        assert f'the checkpoint of step 20 cannot be written to {RUN}/checkpoints' in line
        assert 'the last one is of step 7' in line
        assert steps(gcs) == steps(gcs, committed=False) == [7]
        gcs._failures.clear()
        gcs.fail('POST .*name=run/metrics', times=10**9, status=403)
        (outcome,) = call(gcs, TRAIN)
        assert f'{RUN}/metrics.jsonl cannot be written (Forbidden' in complaint(outcome)
        gcs._failures.clear()
        (outcome,) = call(gcs, TRAIN)
        assert 'resumes after step 7' in finished(outcome).out
        assert_same(download(gcs, tmp_path), local)


def test_the_config_is_the_one_that_the_steps_above_assume():
    assert STEPS == 60 and '--config.save_every=7' in CONFIG and '--config.keep=3' in CONFIG
