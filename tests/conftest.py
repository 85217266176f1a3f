"""What all tests share: one place for data sets, one compilation cache, and a way to run commands.

Set before JAX and TFDS are imported: everything runs on one CPU device, offline. Tests that need
several devices or processes start processes of their own.
"""

import gc
import importlib.util
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / 'tests' / 'configs' / 'tiny.py')

# The processes that pytest-xdist has do the work, and those that tests start, inherit all of it.
_MAIN = 'JAXTRAIN_TESTS' not in os.environ
# Half of the time goes to compiling programs that run for a moment, and half of that to making them
# fast. The same in all processes: numbers are compared bit for bit.
_XLA_FLAGS = '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
if version('jaxlib').startswith('0.10.'):  # a third of the compiling; later ones have no such flag
    _XLA_FLAGS += ' --xla_cpu_use_fusion_emitters=false'
if _MAIN:
    # nohup, and a shell that starts the tests in the background, have them ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    _SHARED = Path(tempfile.mkdtemp(prefix='jaxtrain-tests-'))
    os.environ |= {
        'JAXTRAIN_TESTS': str(_SHARED),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': _XLA_FLAGS,
        'TFDS_DATA_DIR': str(_SHARED / 'data'),
        'MPLBACKEND': 'agg',
        # A process that others are forked from must have one thread.
        'OPENBLAS_NUM_THREADS': '1',
    }
# One for each of pytest's processes: JAX does not write what it keeps there whole.
_WORKER = os.environ.get('PYTEST_XDIST_WORKER', 'xla')
os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{os.environ["JAXTRAIN_TESTS"]}/{_WORKER}'


# It keeps the environment set above.
from tests.support import forked  # noqa: E402


def on_devices(count: int) -> dict[str, str]:
    """The environment of a process that has so many simulated devices."""
    flags = f'{_XLA_FLAGS} --xla_force_host_platform_device_count={count}'
    return {**os.environ, 'XLA_FLAGS': flags}


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed'
)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


# Files that take long, longest first: pytest-xdist hands files out in this order, so that none of
# these is begun last, while the other processes have nothing left to do. Seconds, waits included.
LONGEST = {
    'pod/test_peers.py': 60,
    'launch/test_tpu.py': 50,
    'weights/test_parity.py': 50,
    'runs/test_damage.py': 25,
    'loop/test_train.py': 25,
    'models/test_transformers.py': 20,
    'models/parts/test_blocks.py': 20,
    'runs/test_text_runs.py': 20,
    'weights/test_import.py': 20,
    'models/test_models.py': 20,
    'inspection/test_plan.py': 20,
    'step/test_step.py': 15,
    'inference/test_generate.py': 15,
    'weights/test_foreign.py': 15,
    'study/test_compare.py': 15,
    'step/test_accumulate.py': 15,
    'launch/test_slurm.py': 15,
    'launch/test_local.py': 15,
    'data/datasets/test_prepare.py': 10,
    'runs/test_full_disk.py': 10,
    'data/datasets/test_builders.py': 10,
}


def pytest_addoption(parser):
    parser.addini('cpu_budget', 'CPU-seconds that the fast tests may take')
    parser.addoption('--cpu-budget', action='store_true', help='fail if they take more')


def pytest_collection_modifyitems(items):
    tests = Path(__file__).parent
    items.sort(key=lambda item: -LONGEST.get(item.path.relative_to(tests).as_posix(), 0))


def pytest_collection_finish(session):
    """Keeps garbage collection, a tenth of the CPU time by default, short and rare.

    What has been imported stays, so it is not looked through again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    if session.config.getoption('cpu_budget'):
        _IMPORTS.append(import_seconds())


_WORKERS: list[float] = []  # the CPU-seconds of each of pytest-xdist's processes
_IMPORTS: list[float] = []  # CPU-seconds of importing JAX, at the start and at the end of each


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    output = getattr(node, 'workeroutput', {})
    _WORKERS.append(output.get('cpu_seconds', 0.0))
    _IMPORTS.extend(output.get('imports', []))


def cpu_seconds() -> float:
    """User and system time of this process, its children and those of pytest-xdist."""
    times = os.times()
    own, children = times.user + times.system, times.children_user + times.children_system
    return own + (sum(_WORKERS) if _WORKERS else children)


def import_seconds() -> float:
    """CPU-seconds that importing JAX takes now, beside whatever else keeps the machine busy."""
    before = os.times().children_user
    subprocess.run([sys.executable, '-c', 'import jax'], check=True)
    return os.times().children_user - before


def slowness() -> float:
    """The CPU time of this machine over that of the budget's, where importing JAX takes 0.77 s."""
    return statistics.mean(_IMPORTS) / 0.77


def over_budget(config) -> str:
    """A line that reports it if the session has a budget and took more; otherwise ''."""
    if not config.getoption('cpu_budget'):
        return ''
    spent, budget = cpu_seconds(), float(config.getini('cpu_budget'))
    if spent <= budget * slowness():
        return ''
    return (
        f'FAILED: {spent:.0f} CPU-seconds on a machine that takes {slowness():.2f} times as long '
        f'are more than cpu_budget = {budget:.0f} in pyproject.toml'
    )


def pytest_sessionfinish(session):
    gc.freeze()  # pytest collects several times before it ends
    forked.stop()
    if session.config.getoption('cpu_budget') and _IMPORTS:
        _IMPORTS.append(import_seconds())
    if hasattr(session.config, 'workeroutput'):
        session.config.workeroutput |= {'cpu_seconds': cpu_seconds(), 'imports': _IMPORTS}
    elif session.exitstatus == pytest.ExitCode.OK and over_budget(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if _MAIN:
        shutil.rmtree(_SHARED, ignore_errors=True)


def pytest_terminal_summary(terminalreporter, config):
    scaled = f' / {slowness():.2f}' if _IMPORTS else ''
    terminalreporter.write_line(f'{cpu_seconds():.0f}{scaled} CPU-seconds')
    if line := over_budget(config):
        terminalreporter.write_line(line, red=True)


@pytest.fixture(autouse=True, scope='session')
def orbax_is_tamed():
    """Tests that read and write checkpoints start as commands do."""
    from jaxtrain.checkpoints.process import tame_orbax

    tame_orbax()


@pytest.fixture
def jaxtrain(capsys):
    """Runs a command in this process: `jaxtrain('train', '--config=...') -> Outcome`."""
    from jaxtrain.cli import main

    def run(*words: str) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return run


def start(*words: str, devices: int = 1) -> forked.Process:
    """Starts a command in a process of its own, on so many simulated devices."""
    words = ['-m', 'jaxtrain', *map(str, words)]
    return forked.Process(words, on_devices(devices), stderr=subprocess.STDOUT)


def python(*words: str, devices: int = 1, **env: str) -> Outcome:
    """Runs Python in a process of its own: `python('-m', 'tests.support.layouts', 'cnn')`."""
    process = forked.Process([*map(str, words)], {**on_devices(devices), **env})
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)


def run_long(*words: str) -> str:
    """Runs a command in a process of its own, which computes for minutes: compiled as for a user.

    Returns:
      What it printed.
    """
    words = [sys.executable, '-m', 'jaxtrain', *map(str, words)]
    env = {**os.environ, 'XLA_FLAGS': ''}
    done = subprocess.run(words, env=env, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory) -> Path:
    """A finished run of tiny.py:full, to start from."""
    from jaxtrain.cli import main

    workdir = tmp_path_factory.mktemp('pretrained') / 'full'
    assert main(['train', f'--config={TINY}:full', f'--workdir={workdir}']) == 0
    return workdir


@pytest.fixture(scope='session')
def straight(tmp_path_factory) -> Path:
    """A run of test_resume.py's config, never disturbed."""
    from jaxtrain.cli import main
    from tests.runs.test_resume import CONFIG

    workdir = tmp_path_factory.mktemp('straight') / 'run'
    assert main(['train', *CONFIG, f'--workdir={workdir}']) == 0
    return workdir


@pytest.fixture(scope='session', autouse=True)
def drawing():
    """Runs draw no curves, which takes as long as their steps; but `with drawing():` they do."""
    from jaxtrain.runs import folder

    draw = folder.draw_curves
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, 'draw_curves', lambda *_: b'not drawn')

        @contextmanager
        def drawn():
            with patch.context() as inner:
                inner.setattr(folder, 'draw_curves', draw)
                yield

        yield drawn
