"""What all tests share: one place for data sets, one compilation cache, and a way to run commands.

Set before JAX and TFDS are imported: everything runs on one CPU device, offline. Tests that need
several devices or processes start processes of their own.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
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
    _SHARED = Path(tempfile.mkdtemp(prefix='jaxtrain-tests-'))
    os.environ |= {
        'JAXTRAIN_TESTS': str(_SHARED),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': _XLA_FLAGS,
        'TFDS_DATA_DIR': str(_SHARED / 'data'),
        'MPLBACKEND': 'agg',
    }
# One for each of pytest's processes: JAX does not write what it keeps there whole.
_WORKER = os.environ.get('PYTEST_XDIST_WORKER', 'xla')
os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{os.environ["JAXTRAIN_TESTS"]}/{_WORKER}'


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


def pytest_sessionfinish():
    import shutil

    if _MAIN:
        shutil.rmtree(_SHARED, ignore_errors=True)


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


def start(*words: str, devices: int = 1, **options) -> subprocess.Popen:
    """Starts a command in a process of its own, on so many simulated devices."""
    return subprocess.Popen(
        [sys.executable, '-m', 'jaxtrain', *map(str, words)],
        env=on_devices(devices),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


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
