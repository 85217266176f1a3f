"""A phase that exceeds its budget ends the run; and whole runs in which a process fails."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from jaxtrain import storage
from jaxtrain.loop.cadence import _budgets
from jaxtrain.runs.metrics_log import read_metrics
from tests.conftest import ROOT, TINY, Outcome, start
from tests.pod.test_meet import GONE, HOST, free_port, until
from tests.support.forked import Process

# A process with a watchdog; the test gives its budgets and what it does.
WATCHED = """
import json, sys, threading, time
from pathlib import Path
from jaxtrain import storage
from jaxtrain.runs.clock import Clock
from jaxtrain.pod import peers, watchdog
from jaxtrain.pod.place import Place

class Timeline:
    def alive(self):
        pass

    def hang(self, why):
        print('EVENT', why, flush=True)

def the_function_that_hangs():
    print('BEGAN', time.monotonic(), flush=True)
    time.sleep(1000)

clock, timeline, others = Clock(), Timeline(), peers.Peers(Place(), [])

def ended(why, code):
    print('ENDED', code, why, flush=True)
    print('AT', time.monotonic(), flush=True)

others.position, others.on_end = clock.position, ended
workdir, budgets = Path(sys.argv[1]), json.loads(sys.argv[2])
exec(sys.argv[3])
with watchdog.Watchdog(budgets, others, workdir, timeline):
    exec(sys.argv[4])
exec(sys.argv[5])
"""
HANGS = 'with clock.phase("compile"): the_function_that_hangs()'


def watch(
    workdir: Path, budgets: dict[str, float], act: str, before: str = '', after: str = ''
) -> Outcome:
    words = [sys.executable, '-c', WATCHED, str(workdir), json.dumps(budgets), before, act, after]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return Outcome(done.returncode, done.stdout, done.stderr)


def seconds_to_end(outcome: Outcome) -> float:
    """From the call that hangs to the end of the process, by its own clock."""
    began, end = (
        float(re.search(f'^{word} (.*)$', outcome.out, re.MULTILINE)[1]) for word in ('BEGAN', 'AT')
    )
    return end - began


def test_a_phase_over_its_budget(tmp_path):
    # The message rounds the seconds: to 2, even if the hang is detected half a second late.
    outcome = watch(tmp_path, {'compile': 1.6, 'train': 60.0}, HANGS)
    why = 'compile made no progress for 2 s at step 0 (config.budgets.compile)'
    assert outcome.code == 42
    assert f'EVENT {why}\n' in outcome.out and f'ENDED 42 {why}\n' in outcome.out
    assert f'jaxtrain: {why}; start the same command again to go on\n' in outcome.err
    assert 1.6 < seconds_to_end(outcome) < 3.0
    kept = (tmp_path / 'stacks' / '0.txt').read_text()
    for stacks in (kept, outcome.err):
        assert 'stacks of process 0' in stacks and 'in the_function_that_hangs' in stacks


@pytest.mark.parametrize('phase', ['train', 'data_wait'])
def test_the_budget_of_a_step_is_named_by_its_key(tmp_path, phase):
    act = f'clock.step = 7\nwith clock.phase({phase!r}): the_function_that_hangs()'
    outcome = watch(tmp_path, {'train': 0.5, 'data_wait': 0.5}, act)
    assert f'{phase} made no progress for ' in outcome.out
    assert 'at step 7 (config.budgets.step)' in outcome.out


def test_a_phase_without_a_budget(tmp_path):
    act = 'with clock.phase("eval"): time.sleep(0.8)'
    assert watch(tmp_path, {'save': 0.2}, act, after='print("over")') == (0, 'over\n', '')


def test_a_budget_of_0_is_no_limit():
    names = ('restore', 'compile', 'eval', 'save', 'step')
    budgets = dict.fromkeys(names, 0.0) | {'step': 5.0}
    kept = {'train': 5.0, 'data_wait': 5.0}
    assert _budgets(SimpleNamespace(budgets=SimpleNamespace(**budgets))) == kept
    nothing = SimpleNamespace(budgets=SimpleNamespace(**dict.fromkeys(names, 0.0)))
    assert _budgets(nothing) == {}


def test_budgets_restart_when_a_phase_ends(tmp_path):
    """Neither many short phases nor the phase around them hang; a long one after them does."""
    act = """
with clock.phase('train'):
    for _ in range(6):
        with clock.phase('data_wait'): time.sleep(0.15)
        time.sleep(0.15)
    print('ALIVE', flush=True)
    the_function_that_hangs()
"""
    outcome = watch(tmp_path, {'train': 1.2, 'data_wait': 1.2}, act)
    assert 'ALIVE' in outcome.out and outcome.code == 42
    assert 0.9 < seconds_to_end(outcome) < 4.0  # 0.15 s of them passed before the call


def test_nothing_is_watched_afterwards(tmp_path):
    outcome = watch(tmp_path, {'compile': 0.2}, '', after='''
with clock.phase("compile"): time.sleep(0.8)
print("over")
''')  # fmt: skip
    assert outcome == (0, 'over\n', '')


BROKEN = {
    'all of it hangs': """
storage.write = timeline.hang = others.on_end = lambda *_: time.sleep(1000)
timeline.alive = lambda: time.sleep(1000)
""",
    'all of it fails': """
storage.write = timeline.hang = others.on_end = lambda *_: 1 / 0
timeline.alive = lambda: open('/dev/null/run')
""",
    'no such folder': 'workdir = Path("/dev/null/run")',
    'no temporary file': 'watchdog.tempfile.TemporaryFile = lambda *_: open("/dev/null/run")',
}


@pytest.mark.parametrize('broken', BROKEN)
def test_what_cannot_be_written_does_not_prevent_the_end(tmp_path, broken):
    """The disk itself may be what hangs."""
    before = f'watchdog.WRITING = peers.GRACE = 0.5\n{BROKEN[broken]}'
    pause = 'time.sleep(1.2)' if 'all' in broken else ''  # until `alive` is called
    began = time.monotonic()
    outcome = watch(tmp_path, {'compile': 0.5}, f'{pause}\n{HANGS}', before)
    assert outcome.code == 42 and 'compile made no progress' in outcome.err
    assert ('in the_function_that_hangs' in outcome.err) != (broken == 'no temporary file')
    assert time.monotonic() - began < 10.0


# Whole runs.


def processes(workdir: Path, *more: str) -> list[list[str]]:
    """The words of two processes of a run."""
    words = [
        'train', f'--config={TINY}:full', f'--workdir={workdir}', '--start_timeout=60', *more,
        f'--coordinator=127.0.0.1:{free_port()}', '--processes=2',
    ]  # fmt: skip
    return [[*words, f'--process={number}'] for number in range(2)]


class Late(NamedTuple):
    workdir: Path
    codes: list[int]
    seconds: float


@pytest.fixture(scope='module')
def late(tmp_path_factory) -> Late:
    """A short run whose process 1 started 3 s late, and the seconds from then to its end."""
    workdir = tmp_path_factory.mktemp('late') / 'run'
    first, second = processes(workdir, '--config.steps=5')
    both = [start(*first)]
    time.sleep(3.0)
    began = time.monotonic()
    both.append(start(*second, '--config.data.threads=3'))
    try:
        codes = [end(process, 240.0)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    return Late(workdir, codes, time.monotonic() - began)


@pytest.fixture
def begin():
    """Starts a process that does not outlive the test."""
    started: list[Process] = []

    def run(*words: str) -> Process:
        started.append(start(*words))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate(timeout=60)


def end(process: Process, seconds: float = 60.0) -> tuple[int, str]:
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


@pytest.mark.slow
@pytest.mark.parametrize('stopped', [0, 1])
def test_a_process_that_stops_without_a_word(tmp_path, begin, late, stopped):
    """Both are in a collective; the one that still runs reports which of them is behind."""
    # The process that reaches the first step first waits there, on a busy machine for long.
    budget = max(3.0, late.seconds / 2)
    more = (f'--config.budgets.step={budget}', '--config.steps=1000000', '--config.eval_every=0')
    both = [begin(*words) for words in processes(tmp_path / 'run', *more)]
    until(lambda: read_metrics(tmp_path / 'run') or any(p.poll() is not None for p in both), 240.0)
    began = time.monotonic()
    both[stopped].send_signal(signal.SIGSTOP)
    code, output = end(both[1 - stopped])
    seconds = time.monotonic() - began
    assert code == 42, output
    assert 'made no progress for ' in output and '(config.budgets.step)' in output
    if stopped == 1:
        assert 'behind: process 1 in ' in output
    else:
        assert f'process 0 ({HOST}) does not answer' in output
    assert budget - 1.0 < seconds < 2 * budget + 15.0, output
    print(f'detected after {seconds:.1f} s of {budget:.1f}')
    stacks = (tmp_path / 'run' / 'stacks' / f'{1 - stopped}.txt').read_text()
    assert 'jaxtrain/loop/train.py' in stacks
    both[stopped].send_signal(signal.SIGCONT)
    began = time.monotonic()
    code, output = end(both[stopped])
    print(f'ended {time.monotonic() - began:.1f} s later')
    assert code == 42 and 'jaxtrain:' in output
    if stopped == 1:
        events = storage.read_lines(tmp_path / 'run' / 'events.jsonl')
        assert [event['event'] for event in events[-2:]] == ['hang', 'exit']
        assert events[-1]['code'] == 42 and 'behind: process 1' in events[-1]['why']


@pytest.mark.slow
def test_a_process_that_is_killed_while_they_train(tmp_path, begin):
    """The other one detects it at once, whatever JAX does."""
    more = ('--config.steps=1000000', '--config.eval_every=0')
    both = [begin(*words) for words in processes(tmp_path / 'run', *more)]
    until(lambda: read_metrics(tmp_path / 'run') or any(p.poll() is not None for p in both), 240.0)
    began = time.monotonic()
    both[1].kill()
    code, output = end(both[0])
    seconds = time.monotonic() - began
    assert code == 42 and f'process 1 ({HOST}) {GONE}' in output
    assert seconds < 5.0


@pytest.mark.slow
def test_a_process_with_another_config(tmp_path, begin):
    first, second = processes(tmp_path / 'run', '--config.steps=20')
    both = [begin(*first), begin(*second, '--config.optim.lr=0.5')]
    for process in both:
        code, output = end(process)
        assert code == 2 and output.count('\n') == 1
        assert f'process 1 ({HOST}) differs: config.optim.lr is 0.5 there and 0.01 on' in output
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_process_that_is_never_started(tmp_path, begin):
    first, _ = processes(tmp_path / 'run', '--start_timeout=3')
    code, output = end(begin(*first))
    assert code == 42 and output.count('\n') == 1
    assert 'process 1 of 2 did not connect to 127.0.0.1:' in output
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_process_that_is_late(late):
    """It also uses another number of data threads, which may differ between processes."""
    assert late.codes == [0, 0]
    assert storage.read_json(late.workdir / 'result.json')['steps'] == 5


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1])
def test_a_stop_while_they_wait(tmp_path, begin, number):
    """A job that is cancelled before it begins ends like one that is stopped later."""
    words = processes(tmp_path / 'run')[number]
    process = begin(*words)
    time.sleep(2.0)
    until(lambda: _takes_the_signal(process.pid))
    process.send_signal(signal.SIGTERM)
    code, output = end(process)
    assert code == 42 and 'stopped while waiting for the other processes' in output


def _takes_the_signal(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    caught = re.search(r'SigCgt:\s*(\w+)', Path(f'/proc/{pid}/status').read_text())[1]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
