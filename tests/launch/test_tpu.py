"""The launcher for Cloud TPU, with a fake gcloud that really runs the remote commands."""

import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, Outcome
from tests.pod.test_meet import until
from tests.support.fakes import FakeGcloud, hear_signals

LAUNCHER = ('tpu.py', 'gcloud.py', 'workers.py', 'checkout.py')

GCLOUD = shutil.which('gcloud')
CREATE = ('--zone=z', '--type=v5litepod-16')
BABYSIT = (*CREATE, '--spot', '--backoff=0.1')
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
WORDS = ('--', '--config=tiny.py', "--workdir=gs://b/a run's")


class Bench:
    """A git checkout with the launcher, and a fake gcloud as the first on PATH."""

    def __init__(self, folder: Path, checkout: Path, capture):
        self.folder, self.checkout, self.capture, self.running = folder, checkout, capture, []
        self.script = str(checkout / 'launch' / 'tpu.py')

    def gcloud(self, **scenario) -> FakeGcloud:
        self.fake = FakeGcloud(self.folder / 'gcloud', **scenario)
        return self.fake

    def __call__(self, *words: str) -> Outcome:
        """Runs the launcher in this process."""
        self.capture.readouterr()
        launcher = load(self.script)
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(60)
        try:
            code = launcher.main(list(words))
        except SystemExit as end:  # argparse
            code = end.code
        finally:
            signal.alarm(0)
        return Outcome(code, *self.capture.readouterr())

    def start(self, *words: str) -> subprocess.Popen:
        """Starts the launcher in a separate process, which can be sent signals."""
        process = subprocess.Popen(
            [sys.executable, self.script, *words],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=hear_signals,
        )
        self.running.append(process)
        return process


def too_long(number, frame):
    raise AssertionError('the launcher does not end')


def load(script: str):
    spec = importlib.util.spec_from_file_location('launch_tpu', script)
    module = importlib.util.module_from_spec(spec)
    # The files beside it are imported as when it is run; each checkout has its own.
    for name in LAUNCHER:
        sys.modules.pop(name.removesuffix('.py'), None)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(Path(script).parent))
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.path[0]
    return module


def git(folder: Path, *words: str) -> str:
    who = ('-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'commit.gpgsign=false')
    done = subprocess.run(['git', '-C', folder, *who, *words], check=True, capture_output=True)
    return done.stdout.decode().strip()


def make_checkout(folder: Path) -> Path:
    (folder / 'launch').mkdir(parents=True)
    for name in LAUNCHER:
        shutil.copy(ROOT / 'launch' / name, folder / 'launch')
    (folder / 'jaxtrain').mkdir()
    (folder / 'jaxtrain' / 'loop.py').write_text('print("committed")\n')
    (folder / 'gone.txt').write_text('was tracked\n')
    (folder / 'run.sh').write_text('#!/bin/sh\n')
    (folder / 'run.sh').chmod(0o755)
    (folder / 'link').symlink_to('jaxtrain')
    (folder / '.gitignore').write_text('*.ckpt\n')
    git(folder, 'init', '-q')
    git(folder, 'add', '-A')
    git(folder, 'commit', '-qm', 'first')
    return folder


@pytest.fixture(scope='session')
def clean_checkout(tmp_path_factory) -> Path:
    return make_checkout(tmp_path_factory.mktemp('checkout') / 'jaxtrain')


@pytest.fixture
def bench(tmp_path, clean_checkout, capfd, monkeypatch):
    monkeypatch.setenv('PATH', f'{tmp_path / "gcloud" / "bin"}:{os.environ["PATH"]}')
    monkeypatch.setenv('JAXTRAIN_LAUNCH_POLL', '0.005')
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    bench = Bench(tmp_path, clean_checkout, capfd)
    yield bench
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for process in bench.running:
        if process.poll() is None:
            process.kill()
        process.communicate()
    if hasattr(bench, 'fake'):
        bench.fake.end()


def of(calls: list[list[str]], verb: str) -> list[list[str]]:
    return [call for call in calls if call[3] == verb]


# create and delete


def test_create_requests_once_and_waits_until_active(bench):
    fake = bench.gcloud(states=[['ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']])
    outcome = bench('create', 'r1', *CREATE, '--project=p', '--spot')
    assert outcome.code == 0 and 'WAITING_FOR_RESOURCES' in outcome.err
    assert fake.verbs == ['describe', 'create', *['describe'] * 4]
    [call] = of(fake.calls, 'create')
    assert call == [
        *('compute', 'tpus', 'queued-resources', 'create', 'r1', '--node-id=r1'),
        *('--accelerator-type=v5litepod-16', '--runtime-version=v2-alpha-tpuv5-lite', '--spot'),
        *('--zone=z', '--project=p', '--quiet'),
    ]


@pytest.mark.parametrize(
    'words, expected, forbidden',
    [
        (['--type=v5p-8'], ['--runtime-version=v2-alpha-tpuv5'], ['--spot', '--reserved']),
        (['--type=v6e-16', '--reserved'], ['--runtime-version=v2-alpha-tpuv6e', '--reserved'], []),
        (['--type=v4-8'], ['--runtime-version=tpu-ubuntu2204-base'], []),
        (['--type=v4-8', '--version=mine'], ['--runtime-version=mine'], []),
        (['--type=tpu7x-8', '--version=mine'], ['--runtime-version=mine'], []),
        (
            ['--type=v5p-8', '--slices=3', '--network=n', '--subnetwork=s', '--service-account=a'],
            ['--node-count=3', '--node-prefix=r1', '--network=n', '--subnetwork=s']
            + ['--service-account=a'],
            ['--node-id=r1'],
        ),
    ],
)
def test_flags_of_create(bench, words, expected, forbidden):
    outcome = bench('create', 'r1', '--dry-run', '--zone=z', *words)
    calls = [json.loads(line) for line in outcome.out.splitlines()]
    [call] = [call for call in calls if 'create' in call]
    assert set(expected) <= set(call) and not set(forbidden) & set(call)


def test_create_of_an_active_slice_creates_nothing(bench):
    fake = bench.gcloud()
    fake.make()
    outcome = bench('create', 'r1', *CREATE)
    assert outcome.code == 0 and 'r1 is ACTIVE' in outcome.err
    assert fake.verbs == ['describe']


def test_create_of_a_waiting_slice_keeps_waiting(bench):
    fake = bench.gcloud(states=[['WAITING_FOR_RESOURCES', 'WAITING_FOR_RESOURCES', 'ACTIVE']])
    fake.make()
    assert bench('create', 'r1', *CREATE).code == 0
    assert fake.verbs == ['describe'] * 3


@pytest.mark.parametrize('states', [['FAILED'], ['SUSPENDING', 'SUSPENDED']])
def test_create_replaces_a_slice_that_ended(bench, states):
    fake = bench.gcloud(states=[states, ['ACTIVE']])
    fake.make()
    assert bench('create', 'r1', *CREATE).code == 0
    assert fake.verbs == [*['describe'] * len(states), 'delete', 'describe', 'create', 'describe']
    [call] = of(fake.calls, 'delete')
    assert call[4] == 'r1' and {'--force', '--quiet', '--zone=z'} <= set(call)


def test_create_that_fails_gives_the_reason_and_is_not_repeated(bench):
    fake = bench.gcloud(states=[['ACCEPTED', 'FAILED']])
    outcome = bench('create', 'r1', *CREATE)
    assert outcome.code == 42 and 'r1 is FAILED no such topology' in outcome.err
    assert len(of(fake.calls, 'create')) == 1


def test_create_waits_no_longer_than_its_limit(bench):
    fake = bench.gcloud(states=[['WAITING_FOR_RESOURCES']])
    outcome = bench('create', 'r1', *CREATE, '--wait=0.3')
    assert outcome.code == 42 and 'WAITING_FOR_RESOURCES after 0 s' in outcome.err
    assert 'r1' in fake.slices


@pytest.mark.parametrize(
    'error',
    [
        "RESOURCE_EXHAUSTED: Quota limit 'TPUV5' has been exceeded. Limit: 0 in zone z",
        "PERMISSION_DENIED: Permission denied on 'locations/z' (or it may not exist).",
        'NOT_FOUND: zone z was not found',
    ],
)
def test_a_rejection_is_one_line_and_exit_code_2(bench, error):
    fake = bench.gcloud(errors={'create': [error]})
    outcome = bench('create', 'r1', *CREATE)
    assert outcome.code == 2 and not outcome.out
    assert outcome.err == f'tpu.py: ERROR: (gcloud.compute.tpus) {error}\n'
    assert len(of(fake.calls, 'create')) == 1


def test_temporary_errors_are_retried(bench):
    errors = ['UNAVAILABLE: try later', 'Connection reset by peer']
    fake = bench.gcloud(errors={'create': errors, 'describe': ['Request timed out']})
    assert bench('create', 'r1', *CREATE).code == 0
    assert fake.verbs == ['describe'] * 2 + ['create'] * 3 + ['describe']


@pytest.mark.parametrize(
    'error, passing',
    [
        ('UNAVAILABLE: try later', True),
        ('Request timed out', True),
        ('Connection reset by peer', True),
        ('Internal error encountered', True),
        ('HTTPError 429: slow down', True),
        ("Quota exceeded for quota metric 'Reads', limit 'Reads per minute'", True),
        ('code 429 (rateLimitExceeded)', True),
        ("RESOURCE_EXHAUSTED 429: Quota limit 'TPUV5' has been exceeded. Limit: 0", False),
        ('PERMISSION_DENIED: no', False),
        ('NOT_FOUND: no', False),
        ('You do not currently have an active account selected.', False),
    ],
)
def test_which_errors_are_temporary(bench, error, passing):
    launcher = load(bench.script)
    reply = sys.modules[launcher.Cloud.__module__].Reply
    assert reply(1, '', error).passing == passing
    assert not reply(0, '', error).passing


def test_retries_are_limited(bench):
    fake = bench.gcloud(errors={'describe': ['UNAVAILABLE: try later'] * 99})
    outcome = bench('create', 'r1', *CREATE)
    assert outcome.code == 1 and 'keeps failing' in outcome.err
    assert fake.verbs == ['describe'] * 5


def test_delete_is_retried_and_a_missing_slice_is_no_error(bench):
    fake = bench.gcloud(errors={'delete': ['FAILED_PRECONDITION: is still creating']})
    fake.make()
    assert bench('delete', 'r1', '--zone=z').code == 0
    assert fake.verbs == ['delete'] * 2 and not fake.slices
    outcome = bench('delete', 'r1', '--zone=z')
    assert outcome.code == 0 and 'nothing to delete' in outcome.err


def test_delete_that_never_works_is_an_error(bench):
    fake = bench.gcloud(errors={'delete': ['PERMISSION_DENIED: no'] * 99})
    fake.make()
    outcome = bench('delete', 'r1')
    assert outcome.code == 1 and 'COULD NOT BE DELETED' in outcome.err


# The command line


def test_without_gcloud_the_error_is_one_line(bench, monkeypatch):
    monkeypatch.setenv('PATH', '')
    outcome = bench('status', 'r1')
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    assert 'gcloud is not on PATH' in outcome.err


@pytest.mark.parametrize(
    'words, parts',
    [
        (('run', 'r1'), ('jaxtrain train', '--')),
        (('run', 'Not A Name', *WORDS), ('NAME', "'Not A Name'", 'hyphens')),
        (('run', 'r1', '--env=1X=2', *WORDS), ('--env', "'1X=2'", 'KEY=VALUE')),
        (('create', 'r1', '--zone=z'), ('required', '--type')),
        (('create', 'r1', '--zone=z', '--type=v9-8'), ('v9-8', '--version')),
        (('create', 'r1', *CREATE, '--spot', '--reserved'), ('--spot', '--reserved')),
        (('frobnicate', 'r1'), ("'frobnicate'", 'babysit')),
        ((), ('required', 'COMMAND')),
    ],
)
def test_wrong_input(bench, words, parts):
    fake = bench.gcloud()
    outcome = bench(*words)
    assert outcome.code == 2 and outcome.out == ''
    line = outcome.err.splitlines()[-1]  # after argparse's usage
    assert line.startswith('tpu.py') and all(part in line for part in parts), line
    assert 'create' not in fake.verbs


DRY = {
    'create': (CREATE, ['describe', 'create', 'describe']),
    'sync': ((), ['describe', 'node', 'scp', 'ssh', 'ssh']),
    'run': (WORDS, ['describe', 'node', 'ssh', 'ssh', 'ssh']),
    'logs': (('--follow', '--worker=3'), ['ssh']),
    'status': ((), ['describe', 'describe', 'node', 'ssh']),
    'stop': ((), ['describe', 'node', 'ssh']),
    'delete': ((), ['delete']),
    'babysit': (
        (*BABYSIT, *WORDS),
        ['describe', 'create', 'describe', 'describe', 'node', 'scp', 'ssh', 'ssh']
        + ['describe', 'node', 'ssh', 'ssh', 'ssh', 'delete'],
    ),
}  # fmt: skip


@pytest.mark.parametrize('command', DRY)
def test_a_dry_run_prints_the_calls_and_makes_none(bench, command):
    fake = bench.gcloud()
    words, verbs = DRY[command]
    start = time.monotonic()
    outcome = bench(command, 'r1', '--dry-run', *words)
    assert outcome.code == 0 and time.monotonic() - start < 5
    calls = [json.loads(line) for line in outcome.out.splitlines() if line.startswith('[')]
    assert all(call[:3] == ['gcloud', 'compute', 'tpus'] for call in calls)
    names = {'tpu-vm describe': 'node'}
    assert [names.get(' '.join(call[3:5]), call[4]) for call in calls] == verbs
    assert fake.calls == []


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('command', DRY)
def test_internal_ip_reaches_the_calls(bench, command, inside):
    words, _ = DRY[command]
    out = bench(command, 'r1', '--dry-run', *['--internal-ip'] * inside, *words).out
    for call in (json.loads(line) for line in out.splitlines() if line.startswith('[')):
        assert ('--internal-ip' in call) == (inside and call[4] in ('ssh', 'scp')), call
        assert ('--internal-ips' in call) == (inside and call[4] == 'create'), call


@pytest.mark.slow
@pytest.mark.skipif(GCLOUD is None, reason='needs the Google Cloud CLI')
def test_the_real_gcloud_has_every_command_and_flag(bench, tmp_path):
    argvs = []
    for command, (words, _) in DRY.items():
        extra = ('--network=n', '--subnetwork=s', '--service-account=a')
        for more in [(), ('--reserved', '--slices=2', *extra)] if command == 'create' else [()]:
            flags = ('--project=p', '--internal-ip', *['--zone=z'] * ('--zone=z' not in words))
            outcome = bench(command, 'r1', '--dry-run', *flags, *more, *words)
            argvs += [json.loads(line) for line in outcome.out.splitlines() if line[0] == '[']
    listed = [{'command_string': command} for command in {shlex.join(argv) for argv in argvs}]
    listed.append({'command_string': 'gcloud compute tpus tpu-vm ssh r1 --zone=z --no-such-flag'})
    (tmp_path / 'commands.json').write_text(json.dumps(listed))
    done = subprocess.run(
        [GCLOUD, 'meta', 'lint-gcloud-commands', f'--commands-file={tmp_path / "commands.json"}'],
        env={**os.environ, 'CLOUDSDK_CONFIG': str(tmp_path / 'config')},
        capture_output=True,
        timeout=60,
    )
    *verdicts, bad = json.loads(done.stdout)
    assert not bad['success'], 'gcloud no longer checks flags here'
    assert len(verdicts) == len(listed) - 1 > 10
    assert [one['error_message'] for one in verdicts if not one['success']] == []


# sync


def contents(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar if info.isfile()}


def test_sync_copies_the_checkout_to_every_worker_of_every_slice(bench, clean_checkout):
    fake = bench.gcloud()
    fake.make(slices=2)
    head = git(clean_checkout, 'rev-parse', 'HEAD')
    outcome = bench('sync', 'r1', '--zone=z')
    assert outcome.code == 0 and '4 workers have the code' in outcome.err
    for node in ('r1-0', 'r1-1'):
        for worker in (0, 1):
            home = fake.home(worker, node)
            code = home / 'jaxtrain'
            assert (code / 'jaxtrain' / 'loop.py').read_text() == 'print("committed")\n'
            assert (code / 'REVISION').read_text() == f'{head}\n'
            assert os.access(code / 'run.sh', os.X_OK) and (code / 'link').is_symlink()
            assert (home / 'calls').read_text().splitlines()[-1] == (
                f'pip install -e .[tpu] in {code.resolve()}'
            )
            assert not list(home.glob('*.tar')), 'the archive was not removed'
    scps = of(fake.calls, 'scp')
    assert sorted(call[5].split(':')[0] for call in scps) == ['r1-0', 'r1-1']
    assert all('--worker=all' in call for call in scps)


def test_sync_again_installs_nothing(bench):
    fake = bench.gcloud()
    fake.make()
    assert bench('sync', 'r1').code == bench('sync', 'r1').code == 0
    calls = (fake.home() / 'calls').read_text()
    assert calls.count('pip install -e') == 1 and calls.count('-m venv') == 1


def test_the_archive_holds_local_changes_and_new_files(own_bench):
    bench, checkout = own_bench, own_bench.checkout
    fake = bench.gcloud(workers=1)
    fake.make()
    (checkout / 'jaxtrain' / 'loop.py').write_text('print("changed")\n')
    (checkout / 'ünew file.py').write_text('new\n')
    (checkout / 'big.ckpt').write_text('ignored\n')
    (checkout / 'gone.txt').unlink()
    assert bench('sync', 'r1').code == 0
    code = fake.home() / 'jaxtrain'
    files = {str(path.relative_to(code)) for path in code.rglob('*') if path.is_file()}
    assert files == {
        *(f'launch/{name}' for name in LAUNCHER),
        *('jaxtrain/loop.py', 'run.sh', '.gitignore', 'ünew file.py', 'REVISION'),
    }
    assert (code / 'jaxtrain' / 'loop.py').read_text() == 'print("changed")\n'
    commit, _, change = (code / 'REVISION').read_text().rstrip('\n').partition('+')
    assert commit == git(checkout, 'rev-parse', 'HEAD')
    assert len(change) == 12 and int(change, 16) >= 0


def test_the_archive_is_the_same_for_the_same_content(own_bench, tmp_path):
    checkout, launcher = own_bench.checkout, load(own_bench.script)

    def packed(name: str):
        (tmp_path / name).mkdir()
        path, digest = launcher.archive(tmp_path / name)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        with tarfile.open(path) as tar:
            return digest, tar.extractfile('REVISION').read().decode().strip(), contents(path)

    first, revision, _ = packed('first')
    assert revision == git(checkout, 'rev-parse', 'HEAD')
    os.utime(checkout / 'run.sh', (1, 1))
    (checkout / 'launch').chmod(0o700)
    assert packed('touched')[0] == first
    (checkout / 'new.py').write_text('1')
    changed, revision_1, files = packed('one')
    (checkout / 'new.py').write_text('2')
    other, revision_2, _ = packed('two')
    assert files['new.py'] == b'1'
    assert len({first, changed, other}) == len({revision, revision_1, revision_2}) == 3
    (checkout / 'new.py').unlink()
    assert packed('back')[:2] == (first, revision)


@pytest.fixture
def own_bench(bench, tmp_path):
    """A bench whose checkout may be changed."""
    bench.checkout = make_checkout(tmp_path / 'own')
    bench.script = str(bench.checkout / 'launch' / 'tpu.py')
    return bench


def test_a_damaged_copy_is_sent_again(bench):
    fake = bench.gcloud(damaged=[[1]])
    fake.make()
    outcome = bench('sync', 'r1')
    assert outcome.code == 0 and 'arrived damaged on r1-w-1: the sha256 is wrong' in outcome.err
    assert len(of(fake.calls, 'scp')) == 2


def test_a_copy_that_stays_damaged_is_an_error_and_never_unpacked(bench):
    fake = bench.gcloud(damaged=[[1]] * 9)
    fake.make()
    outcome = bench('sync', 'r1')
    assert outcome.code == 1 and outcome.err.endswith(
        'does not reach r1-w-1: the sha256 is wrong\n'
    )
    assert not any((fake.home(worker) / 'jaxtrain').exists() for worker in (0, 1))


def test_unreachable_workers_are_asked_again(bench):
    fake = bench.gcloud(unreachable=[[0], [1]])
    fake.make()
    outcome = bench('sync', 'r1')
    assert outcome.code == 0 and '1 of 2 workers of r1 answered' in outcome.err


def test_an_installation_that_fails_is_an_error_and_is_repeated(bench):
    fake = bench.gcloud(plan=['pip-fails'])
    fake.make()
    outcome = bench('sync', 'r1')
    assert outcome.code == 1
    assert 'r1-w-0 cannot install the code: ERROR: no matching distribution' in outcome.err
    for worker in (0, 1):
        (fake.home(worker) / 'plan' / 'pip-fails').unlink()
    assert bench('sync', 'r1').code == 0
    assert (fake.home() / 'calls').read_text().count('pip install -e') == 2


def test_an_old_python_is_replaced(bench):
    fake = bench.gcloud(plan=['old-python'], workers=1)
    fake.make()
    assert bench('sync', 'r1').code == 0
    assert 'python3 -m uv venv --seed --python 3.12 jaxtrain-venv' in (
        (fake.home() / 'calls').read_text()
    )


def test_the_swap_is_complete_and_replaces_no_folder_of_the_user(own_bench):
    bench, checkout = own_bench, own_bench.checkout
    fake = bench.gcloud(workers=1)
    fake.make()
    assert bench('sync', 'r1').code == 0
    home = fake.home()
    first = (home / 'jaxtrain').resolve()
    (checkout / 'more.py').write_text('more')
    # The new version is complete, and the old one is unchanged.
    assert bench('sync', 'r1').code == 0
    second = (home / 'jaxtrain').resolve()
    assert (second / 'more.py').exists() and not (first / 'more.py').exists()
    assert {path.name for path in (home / 'jaxtrain-versions').iterdir()} == {
        first.name,
        second.name,
    }
    (home / 'jaxtrain').unlink()
    (home / 'jaxtrain').mkdir()
    (checkout / 'more.py').write_text('still more')
    outcome = bench('sync', 'r1')
    assert outcome.code == 1 and 'cannot install the code' in outcome.err
    assert (home / 'jaxtrain').is_dir() and not (home / 'jaxtrain').is_symlink()


def test_sync_does_not_change_the_code_under_a_run(own_bench):
    bench = own_bench
    fake = bench.gcloud(steps=[100], workers=1)
    fake.make()
    assert bench('sync', 'r1').code == 0
    bench.start('run', 'r1', *WORDS)
    until(lambda: starts(fake))
    before = (fake.home() / 'jaxtrain').resolve()
    assert bench('sync', 'r1').code == 0  # nothing to do
    (bench.checkout / 'new.py').write_text('new')
    outcome = bench('sync', 'r1')
    assert outcome.code == 1 and 'a run holds jaxtrain-runs/r1/lock' in outcome.err
    assert (fake.home() / 'jaxtrain').resolve() == before


def test_sync_needs_a_slice(bench):
    fake = bench.gcloud()
    outcome = bench('sync', 'r1')
    assert outcome.code == 2 and 'r1 is missing: run create' in outcome.err
    assert fake.verbs == ['describe']


# run, status, logs, stop


def ready(bench, slices: int = 1, **scenario) -> FakeGcloud:
    """A slice with only what `run` requires from `sync`."""
    fake = bench.gcloud(**scenario)
    fake.make(slices=slices)
    for home in (fake.folder / 'homes').glob('1-*'):
        (home / 'jaxtrain').mkdir()
        (home / 'jaxtrain-venv' / 'bin').mkdir(parents=True)
        shutil.copy(home.parent / 'fake-jaxtrain', home / 'jaxtrain-venv' / 'bin' / 'jaxtrain')
    return fake


def starts(fake: FakeGcloud, *where) -> int:
    path = fake.home(*where) / 'starts'
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_run_trains_on_every_worker_and_waits(bench):
    fake = ready(bench, slices=2, steps=[10])
    outcome = bench('run', 'r1', '--env=JAX_X=a b', "--env=Y=it's", *WORDS)
    assert outcome.code == 0
    for node in ('r1-0', 'r1-1'):
        for worker in (0, 1):
            home = fake.home(worker, node)
            assert (home / 'args').read_text().splitlines() == ['train', *WORDS[1:]]
            assert {'JAX_X=a b', "Y=it's"} <= set((home / 'env').read_text().splitlines())
            assert (home / 'cwd').read_text().strip() == str(home / 'jaxtrain')
            run = home / 'jaxtrain-runs' / 'r1'
            assert (run / 'exit').read_text() == '0\n'
            assert 'last line' in (run / 'log').read_text()
            assert 'to stderr' in (run / 'log').read_text()
            assert starts(fake, worker, node) == 1


@pytest.mark.parametrize(
    'codes, code',
    [([0], 0), ([0, 42], 42), ([42, 1, 0], 1), ([1, 42, 2], 2), ([139, 1], 139), ([255, 0], 255)],
)
def test_one_exit_code_for_all_workers(bench, codes, code):
    assert load(bench.script).combined(codes) == code


@pytest.mark.parametrize('exits, code', [([0, 42], 42), ([42, 139], 139)])
def test_the_exit_code_of_run(bench, exits, code):
    ready(bench, exits=[exits], steps=[0])
    outcome = bench('run', 'r1', *WORDS)
    assert outcome.code == code
    if code not in (0, 42):
        assert f'ended with exit code {code}: last line' in outcome.err


def test_the_run_outlives_the_launcher_and_is_not_started_twice(bench):
    fake = ready(bench, steps=[10_000])
    process = bench.start('run', 'r1', *WORDS)
    until(lambda: starts(fake, 0) and starts(fake, 1))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'r1 continues there' in err
    run = fake.home() / 'jaxtrain-runs' / 'r1'
    pid = int((run / 'pid').read_text())
    assert os.getpgid(pid) == pid != os.getpgid(0), 'not in a group of its own'
    again = bench.start('run', 'r1', *WORDS)
    assert 'already running' in again.stderr.readline()
    fake.finish()
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert starts(fake, 0) == starts(fake, 1) == 1
    # A run that has ended may be started again.
    assert bench('run', 'r1', *WORDS[:2]).code == 0
    assert starts(fake, 0) == starts(fake, 1) == 2


def test_workers_that_are_reached_late_start_once(bench):
    # The first answers are lost, so that every worker is asked to start twice.
    fake = ready(bench, unreachable=[[], [1], [], [0, 1], [0]], steps=[0])
    assert bench('run', 'r1', *WORDS).code == 0
    assert starts(fake, 0) == starts(fake, 1) == 1


def test_a_worker_that_ended_is_not_restarted_while_others_run(bench):
    fake = ready(bench, exits=[[1, 0]], steps=[0])
    (fake.home(1) / 'plan' / 'steps').write_text('10000')
    process = bench.start('run', 'r1', *WORDS)
    exits = fake.home() / 'jaxtrain-runs' / 'r1' / 'exit'
    until(lambda: exits.exists() and starts(fake, 1))
    process.kill()
    again = bench.start('run', 'r1', *WORDS)
    assert 'r1 started' in again.stderr.readline()
    fake.finish()
    again.communicate(timeout=60)
    assert again.returncode == 1
    assert starts(fake, 0) == starts(fake, 1) == 1


def test_run_needs_sync(bench):
    bench.gcloud().make()
    outcome = bench('run', 'r1', *WORDS)
    assert outcome.code == 2 and 'run sync first' in outcome.err


def test_a_run_that_vanished_is_lost(bench):
    fake = ready(bench, steps=[10_000])
    process = bench.start('run', 'r1', *WORDS)
    until(lambda: starts(fake, 0) and starts(fake, 1))
    fake.end()  # as if the machines had rebooted
    _, err = process.communicate(timeout=60)
    assert process.returncode == 42 and 'ended without an exit code' in err


def test_workers_never_reached_are_lost(bench):
    fake = ready(bench, unreachable=[[0]] * 99, workers=1)
    outcome = bench('run', 'r1', *WORDS)
    assert outcome.code == 42 and 'cannot be reached: ' in outcome.err
    assert len(of(fake.calls, 'ssh')) == 8


def test_stop_lets_the_run_save_and_exit_42(bench):
    ready(bench, steps=[10_000])
    process = bench.start('run', 'r1', *WORDS)
    until(lambda: starts(bench.fake, 0) and starts(bench.fake, 1))
    outcome = bench('stop', 'r1')
    assert outcome.code == 0 and '2 of 2 workers had a run' in outcome.err
    process.communicate(timeout=60)
    assert process.returncode == 42
    for worker in (0, 1):
        run = bench.fake.home(worker) / 'jaxtrain-runs' / 'r1'
        assert (run / 'exit').read_text() == '42\n' and 'saved' in (run / 'log').read_text()
    assert '0 of 2 workers had a run' in bench('stop', 'r1').err


def test_status_and_logs(bench):
    fake = ready(bench, exits=[[0, 3]], steps=[0])
    assert bench('status', 'r2').out.startswith('r2 does not exist')
    assert bench('status', 'r1').out.split()[:4] == ['r1', 'ACTIVE', 'r1-w-0', 'none']
    assert bench('run', 'r1', *WORDS).code == 3
    rows = [line.split() for line in bench('status', 'r1').out.splitlines()]
    assert rows[1:] == [
        ['r1-w-0', 'exit', '0', 'last', 'line'],
        ['r1-w-1', 'exit', '3', 'last', 'line'],
    ]
    outcome = bench('logs', 'r1', '--worker=1')
    assert outcome.code == 0
    assert outcome.out.splitlines() == ['step 1 of r1-w-1', 'to stderr', 'last line']
    assert bench('logs', 'r1', '--worker=2').code == 2
    fake.change(unreachable=[[1]] * 99)
    assert '1 of 2 workers did not answer' in bench('status', 'r1').out


def test_logs_follow_until_interrupted(bench):
    fake = ready(bench, slices=2, steps=[0])
    run = fake.home(1, 'r1-1') / 'jaxtrain-runs' / 'r1'
    run.mkdir(parents=True)
    (run / 'log').write_text('first\n')
    process = bench.start('logs', 'r1', '--worker=3', '--follow')
    # The fake forwards the output only at its end, so the test checks that the call continues.
    until(lambda: 'ssh' in fake.verbs)
    assert '--worker=1' in fake.calls[-1] and 'tail -n 100 -F' in fake.calls[-1][-2]
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


# babysit


def test_babysit_creates_runs_and_deletes(bench):
    fake = bench.gcloud(states=[['WAITING_FOR_RESOURCES', 'ACTIVE']])
    outcome = bench('babysit', 'r1', *BABYSIT, '--env=A=b', *WORDS)
    assert outcome.code == 0, outcome.err
    assert fake.verbs[-1] == 'delete' and fake.verbs.count('delete') == 1 and not fake.slices
    assert '--spot' in of(fake.calls, 'create')[0]
    assert (fake.home() / 'args').read_text().splitlines() == ['train', *WORDS[1:]]


def test_babysit_resumes_with_the_same_command_after_42(bench):
    fake = bench.gcloud(workers=1, exits=[[42], [0]])
    outcome = bench('babysit', 'r1', *BABYSIT, *WORDS)
    assert outcome.code == 0 and 'retry 1 of 10' in outcome.err
    assert fake.verbs.count('create') == fake.verbs.count('delete') == 2 and not fake.slices
    first, second = fake.home(made=1), fake.home(made=2)
    assert (first / 'args').read_text() == (second / 'args').read_text()
    assert (first / 'jaxtrain').resolve().name == (second / 'jaxtrain').resolve().name


def test_babysit_replaces_a_preempted_slice(bench):
    # The slice is gone before the sixth ssh, which asks for the state of the run.
    fake = bench.gcloud(workers=1, steps=[10_000, 1], preempt=5)
    outcome = bench('babysit', 'r1', *BABYSIT, *WORDS)
    assert outcome.code == 0 and 'r1 is SUSPENDED' in outcome.err
    assert fake.verbs.count('create') == fake.verbs.count('delete') == 2 and not fake.slices


def test_babysit_replaces_a_slice_that_vanished(bench):
    fake = bench.gcloud(workers=1, steps=[10_000, 1], preempt=5, vanish=True)
    outcome = bench('babysit', 'r1', *BABYSIT, *WORDS)
    assert outcome.code == 0 and 'r1 is missing' in outcome.err
    assert fake.verbs.count('create') == 2 and not fake.slices


def test_babysit_replaces_a_slice_that_fails_during_creation(bench):
    fake = bench.gcloud(workers=1, states=[['PROVISIONING', 'SUSPENDED'], ['ACTIVE']])
    assert bench('babysit', 'r1', *BABYSIT, *WORDS).code == 0
    assert fake.verbs.count('create') == 2


@pytest.mark.parametrize('code', [1, 2])
def test_babysit_stops_at_once_on_a_fatal_code(bench, code):
    fake = bench.gcloud(exits=[[42, code]])
    assert bench('babysit', 'r1', *BABYSIT, *WORDS).code == code
    assert fake.verbs.count('create') == fake.verbs.count('delete') == 1 and not fake.slices


def test_babysit_limits_its_retries(bench):
    fake = bench.gcloud(workers=1, exits=[[42]], steps=[0])
    outcome = bench('babysit', 'r1', *BABYSIT, '--retries=1', *WORDS)
    assert outcome.code == 42 and 'all 1 retries are used up' in outcome.err
    assert fake.verbs.count('create') == fake.verbs.count('delete') == 2 and not fake.slices


def test_babysit_deletes_a_slice_that_it_cannot_use(bench):
    fake = bench.gcloud(workers=1, plan=['pip-fails'])
    assert bench('babysit', 'r1', *BABYSIT, *WORDS).code == 1
    assert fake.verbs[-1] == 'delete' and not fake.slices


def test_babysit_keeps_the_slice_on_request(bench):
    fake = bench.gcloud(workers=1)
    assert bench('babysit', 'r1', *BABYSIT, '--keep', *WORDS).code == 0
    assert 'delete' not in fake.verbs and 'r1' in fake.slices


def test_babysit_after_a_quota_error(bench):
    fake = bench.gcloud(workers=1, errors={'create': ['RESOURCE_EXHAUSTED: Quota limit exceeded']})
    assert bench('babysit', 'r1', *BABYSIT, *WORDS).code == 2
    assert fake.verbs == ['describe', 'create', 'delete']


def test_babysit_reports_a_slice_that_is_not_deleted(bench):
    fake = bench.gcloud(workers=1, errors={'delete': ['PERMISSION_DENIED: no'] * 99})
    outcome = bench('babysit', 'r1', *BABYSIT, *WORDS)
    assert outcome.code == 1 and 'COULD NOT BE DELETED' in outcome.err and 'r1' in fake.slices


@pytest.mark.parametrize(
    'verb, number',
    [
        ('create', signal.SIGINT),
        ('create', signal.SIGTERM),
        ('scp', signal.SIGINT),
        ('wait', signal.SIGTERM),
        ('wait', signal.SIGHUP),
    ],
)
def test_a_signal_deletes_the_slice_and_a_second_one_changes_nothing(bench, verb, number):
    if verb == 'wait':
        fake = bench.gcloud(
            workers=1, steps=[10_000], sleeps={'delete': 0.4}, errors={'delete': ['INTERNAL']}
        )
        condition = lambda: fake.verbs.count('ssh') > 4  # noqa: E731
    else:
        # Long enough for the signal to arrive meanwhile; a create that was called is waited for.
        seconds = 0.5 if verb == 'create' else 60
        sleeps = {verb: seconds, 'delete': 0.4}
        fake = bench.gcloud(workers=1, sleeps=sleeps, errors={'delete': ['INTERNAL']})
        condition = lambda: verb in fake.verbs  # noqa: E731
    process = bench.start('babysit', 'r1', *BABYSIT, *WORDS)
    until(condition)
    os.killpg(process.pid, number)  # to the whole group, as a terminal does
    until(lambda: 'delete' in fake.verbs)
    for again in (signal.SIGINT, signal.SIGTERM):
        time.sleep(0.1)
        os.killpg(process.pid, again)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert fake.verbs.count('delete') == 2 and fake.verbs[-1] == 'delete' and not fake.slices
    assert 'deleting r1: wait for it' in err and 'r1 is deleted' in err
    assert 'Traceback' not in err


def test_a_signal_in_the_pause_before_a_retry(bench):
    fake = bench.gcloud(workers=1, exits=[[42]], steps=[0])
    process = bench.start('babysit', 'r1', *CREATE, '--backoff=600', *WORDS)
    until(lambda: 'delete' in fake.verbs)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert fake.verbs.count('create') == 1 and not fake.slices
