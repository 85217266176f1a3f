"""A phase that does not end in its time ends the run; and whole runs on two processes that fail."""

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
from jaxtrain.runs.run import read_metrics
from tests.conftest import ROOT, TINY, Outcome, start
from tests.pod.test_meet import GONE, HOST, free_port, until
from tests.support.forked import Process

# A process with a watchdog: it does what the test says, under budgets that the test says.
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

others.on_end = ended
workdir, budgets = Path(sys.argv[1]), json.loads(sys.argv[2])
exec(sys.argv[3])
with watchdog.Watchdog(budgets, clock.position, others, workdir, timeline):
    exec(sys.argv[4])
exec(sys.argv[5])
"""
HANGS = 'with clock.phase("compile"): the_function_that_hangs()'


def watch(
    workdir: Path, budgets: dict[str, float], act: str, before: str = '', after: str = ''
) -> Outcome:
    words = [sys.executable, '-c', WATCHED, str(workdir), json.dumps(budgets), before, act, after]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return Outcome(found.returncode, found.stdout, found.stderr)


def seconds_to_end(outcome: Outcome) -> float:
    """From the call of what hangs to the end of the process, by its own clock."""
    began, end = (
        float(re.search(f'^{word} (.*)$', outcome.out, re.MULTILINE)[1]) for word in ('BEGAN', 'AT')
    )
    return end - began


def test_a_phase_over_its_budget(tmp_path):
    # Seconds that are told rounded: as 2, also where they are noticed half a second late.
    found = watch(tmp_path, {'compile': 1.6, 'train': 60.0}, HANGS)
    why = 'compile has not got on for 2 s at step 0 (config.budgets.compile)'
    assert found.code == 42
    assert f'EVENT {why}\n' in found.out and f'ENDED 42 {why}\n' in found.out
    assert f'jaxtrain: {why}; start the same command again to go on\n' in found.err
    assert 1.6 < seconds_to_end(found) < 3.0
    kept = (tmp_path / 'stacks' / '0.txt').read_text()
    for stacks in (kept, found.err):
        assert 'stacks of process 0' in stacks and 'in the_function_that_hangs' in stacks


@pytest.mark.parametrize('phase', ['train', 'data_wait'])
def test_the_budget_of_a_step_is_named_by_its_key(tmp_path, phase):
    act = f'clock.step = 7\nwith clock.phase({phase!r}): the_function_that_hangs()'
    found = watch(tmp_path, {'train': 0.5, 'data_wait': 0.5}, act)
    assert f'{phase} has not got on for ' in found.out
    assert 'at step 7 (config.budgets.step)' in found.out


def test_a_phase_without_a_budget(tmp_path):
    act = 'with clock.phase("eval"): time.sleep(0.8)'
    assert watch(tmp_path, {'save': 0.2}, act, after='print("over")') == (0, 'over\n', '')


def test_a_budget_of_nothing_is_for_ever():
    names = ('restore', 'compile', 'eval', 'save', 'step')
    budgets = dict.fromkeys(names, 0.0) | {'step': 5.0}
    kept = {'train': 5.0, 'data_wait': 5.0}
    assert _budgets(SimpleNamespace(budgets=SimpleNamespace(**budgets))) == kept
    nothing = SimpleNamespace(budgets=SimpleNamespace(**dict.fromkeys(names, 0.0)))
    assert _budgets(nothing) == {}


def test_budgets_restart_when_a_phase_ends(tmp_path):
    """Many short ones are no hang, nor is what is around them; a long one is, after all that."""
    act = """
with clock.phase('train'):
    for _ in range(6):
        with clock.phase('data_wait'): time.sleep(0.15)
        time.sleep(0.15)
    print('ALIVE', flush=True)
    the_function_that_hangs()
"""
    found = watch(tmp_path, {'train': 1.2, 'data_wait': 1.2}, act)
    assert 'ALIVE' in found.out and found.code == 42
    assert 0.9 < seconds_to_end(found) < 4.0  # 0.15 s of it were before the call


def test_nothing_is_watched_afterwards(tmp_path):
    found = watch(tmp_path, {'compile': 0.2}, '', after='''
with clock.phase("compile"): time.sleep(0.8)
print("over")
''')  # fmt: skip
    assert found == (0, 'over\n', '')


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
    """What hangs may be the disk itself."""
    before = f'watchdog.WRITING = peers.GRACE = 0.5\n{BROKEN[broken]}'
    pause = 'time.sleep(1.2)' if 'all' in broken else ''  # till it says that it is alive
    began = time.monotonic()
    found = watch(tmp_path, {'compile': 0.5}, f'{pause}\n{HANGS}', before)
    assert found.code == 42 and 'compile has not got on' in found.err
    assert ('in the_function_that_hangs' in found.err) != (broken == 'no temporary file')
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
    """A short run of which process 1 came 3 s late, and the seconds that it took since."""
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
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize('stopped', [0, 1])
def test_a_process_that_stops_without_a_word(tmp_path, begin, late, stopped):
    """Both are in a collective; the one that is left knows which of them does not get on."""
    # Whoever is first at the first step waits there, on a busy machine for long.
    budget = max(3.0, late.seconds / 2)
    more = (f'--config.budgets.step={budget}', '--config.steps=1000000', '--config.eval_every=0')
    both = [begin(*words) for words in processes(tmp_path / 'run', *more)]
    until(lambda: read_metrics(tmp_path / 'run') or any(p.poll() is not None for p in both), 240.0)
    began = time.monotonic()
    both[stopped].send_signal(signal.SIGSTOP)
    code, said = end(both[1 - stopped])
    seconds = time.monotonic() - began
    assert code == 42, said
    assert 'has not got on for ' in said and '(config.budgets.step)' in said
    if stopped == 1:
        assert 'behind: process 1 in ' in said
    else:
        assert f'process 0 ({HOST}) does not answer' in said
    assert budget - 1.0 < seconds < 2 * budget + 15.0, said
    print(f'known after {seconds:.1f} s of {budget:.1f}')
    stacks = (tmp_path / 'run' / 'stacks' / f'{1 - stopped}.txt').read_text()
    assert 'jaxtrain/loop/train.py' in stacks
    both[stopped].send_signal(signal.SIGCONT)
    began = time.monotonic()
    code, said = end(both[stopped])
    print(f'ended {time.monotonic() - began:.1f} s later')
    assert code == 42 and 'jaxtrain:' in said
    if stopped == 1:
        events = storage.read_lines(tmp_path / 'run' / 'events.jsonl')
        assert [event['event'] for event in events[-2:]] == ['hang', 'exit']
        assert events[-1]['code'] == 42 and 'behind: process 1' in events[-1]['why']


@pytest.mark.slow
def test_a_process_that_is_killed_while_they_train(tmp_path, begin):
    """The other one knows it at once, whatever JAX makes of it."""
    more = ('--config.steps=1000000', '--config.eval_every=0')
    both = [begin(*words) for words in processes(tmp_path / 'run', *more)]
    until(lambda: read_metrics(tmp_path / 'run') or any(p.poll() is not None for p in both), 240.0)
    began = time.monotonic()
    both[1].kill()
    code, said = end(both[0])
    seconds = time.monotonic() - began
    assert code == 42 and f'process 1 ({HOST}) {GONE}' in said
    assert seconds < 5.0


@pytest.mark.slow
def test_a_process_with_another_config(tmp_path, begin):
    first, second = processes(tmp_path / 'run', '--config.steps=20')
    both = [begin(*first), begin(*second, '--config.optim.lr=0.5')]
    for process in both:
        code, said = end(process)
        assert code == 2 and said.count('\n') == 1
        assert f'process 1 ({HOST}) differs: config.optim.lr is 0.5 there and 0.01 on' in said
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_process_that_is_never_started(tmp_path, begin):
    first, _ = processes(tmp_path / 'run', '--start_timeout=3')
    code, said = end(begin(*first))
    assert code == 42 and said.count('\n') == 1
    assert 'of 2 processes 1 did not come within 3 s to 127.0.0.1:' in said
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_process_that_is_late(late):
    """And reads its data by other threads, which is its own matter."""
    assert late.codes == [0, 0]
    assert storage.read_json(late.workdir / 'result.json')['steps'] == 5


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1])
def test_a_stop_while_they_wait(tmp_path, begin, number):
    """A job that is cancelled before it has begun ends as one that is stopped later."""
    words = processes(tmp_path / 'run')[number]
    process = begin(*words)
    time.sleep(2.0)
    until(lambda: _takes_the_signal(process.pid))
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == 42 and 'stopped while waiting for the other processes' in said


def _takes_the_signal(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    caught = re.search(r'SigCgt:\s*(\w+)', Path(f'/proc/{pid}/status').read_text())[1]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
