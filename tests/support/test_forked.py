"""A forked process is like a fresh one, but for what is imported; and pytest's own bookkeeping."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conftest
from tests.conftest import LONGEST, ROOT, python
from tests.support.forked import Process, by_default

# How a process finds things, line by line.
FOUND = """
import os, signal, sys, threading
print(sys.argv[1:], os.getcwd(), sorted(os.environ.items()))
print([signal.getsignal(number) for number in sorted(signal.valid_signals())])
print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), os.getpgrp(), os.nice(0))
print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1], os.listdir('/proc/self/task') == [str(os.getpid())])
print(os.isatty(0), sys.stdin.read(), sys.stdout.line_buffering, sys.stderr.line_buffering)
print(threading.current_thread() is threading.main_thread(), __name__, sys.modules['__main__'].FOUND)
"""  # noqa: E501


def begin(code: str) -> Process:
    return Process(['-c', code], dict(os.environ))


def test_it_is_as_a_fresh_one_is():
    code, words = f'FOUND = 1\n{FOUND}', ['a', '--b=c d']
    env = os.environ | {'XLA_FLAGS': '', 'X': 'y'}
    fresh = subprocess.run(
        [sys.executable, '-c', code, *words], env=env, cwd=ROOT, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, check=True, preexec_fn=by_default,
    )  # fmt: skip
    assert python('-c', code, *words, XLA_FLAGS='', X='y') == (0, fresh.stdout, fresh.stderr)


def test_no_device_was_touched_before_the_fork():
    code = 'from jax._src import xla_bridge; print(xla_bridge._backends); '
    code += 'import jax; print(jax.device_count())'
    assert python('-c', code, devices=3).out == '{}\n3\n'


def test_its_imports_are_made():
    code = 'import sys; print({"jaxtrain.loop.train", "orbax.checkpoint"} <= set(sys.modules))'
    assert python('-c', code).out == 'True\n'


@pytest.mark.parametrize(
    ('act', 'code', 'err'),
    [
        ('pass', 0, ''),
        ('sys.exit(42)', 42, ''),
        ('sys.exit("wrong")', 1, 'wrong\n'),
        ('os.kill(os.getpid(), signal.SIGTERM)', -signal.SIGTERM, ''),
        ('os.abort()', -signal.SIGABRT, ''),
        ('os._exit(3)', 3, ''),
    ],
)
def test_how_it_ends(act, code, err):
    assert python('-c', f'import os, signal, sys; {act}')[::2] == (code, err)


def test_an_error_has_its_traceback():
    code, out, err = python('-c', 'import atexit; atexit.register(print, "exit"); 1 / 0')
    assert (code, out) == (1, 'exit\n')
    assert err.startswith('Traceback') and err.endswith('ZeroDivisionError: division by zero\n')


def test_an_interrupt_ends_it_as_it_ends_others():
    child = begin('import time\nprint("on", flush=True)\ntime.sleep(60)')
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.01)
    while os.fstat(child._out.fileno()).st_size < len('on\n'):
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (-signal.SIGINT, 'on\n') and 'KeyboardInterrupt' in err


def test_a_kill():
    child = begin('import time; time.sleep(60)')
    assert child.poll() is None
    child.kill()
    assert child.wait(60) == child.poll() == -signal.SIGKILL
    assert not Path(f'/proc/{child.pid}').exists()
    child.kill()  # of what has ended, as Popen has it: nothing


def test_what_is_read_before_the_fork_cannot_be_changed():
    with pytest.raises(AssertionError, match='use subprocess'):
        python('-c', 'pass', PYTHONHASHSEED='1')


# The bookkeeping of conftest.


def test_the_longest_files_are_there():
    assert [name for name in LONGEST if not (ROOT / 'tests' / name).is_file()] == []
    assert sorted(LONGEST.values(), reverse=True) == [*LONGEST.values()]


@pytest.mark.parametrize(
    ('held', 'spent', 'slowness', 'over'),
    [(True, 500, 1, False), (True, 501, 1, True), (True, 501, 2, False), (False, 501, 1, False)],
)
def test_the_budget(held, spent, slowness, over, monkeypatch):
    monkeypatch.setattr(conftest, 'cpu_seconds', lambda: spent)
    monkeypatch.setattr(conftest, 'slowness', lambda: slowness)
    config = SimpleNamespace(getini=lambda _: '500', getoption=lambda _: held)
    assert bool(conftest.over_budget(config)) == over


def test_the_time_of_children_and_of_other_workers_counts(monkeypatch):
    times = SimpleNamespace(user=1, system=2, children_user=10, children_system=20)
    monkeypatch.setattr(os, 'times', lambda: times)
    assert conftest.cpu_seconds() == 33
    # Workers count their children themselves.
    monkeypatch.setattr(conftest, '_WORKERS', [100.0, 200.0])
    assert conftest.cpu_seconds() == 303
