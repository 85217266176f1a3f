"""launch/local.sh with a scripted program in place of jaxtrain. CI runs it with jaxtrain."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.fakes import hear_signals

LOCAL = ROOT / 'launch' / 'local.sh'

# Replaces `python -m jaxtrain train`: each process runs its steps from the list in PLAY.
PROGRAM = f"""#!{sys.executable} -S
import json, os, signal, subprocess, sys, time

assert sys.argv[1:4] == ['-m', 'jaxtrain', 'train'], sys.argv
flags = dict(word.lstrip('-').split('=', 1) for word in sys.argv[4:] if '=' in word)
number = int(flags.get('process', 0))

def say(text, to=sys.stdout):
    to.write(text + '\\n')  # one write, not flushed: PYTHONUNBUFFERED must ensure that

def on_term(code, delay=0):
    def end(*_):
        time.sleep(delay)
        say('saved')
        sys.stdout.flush()
        os._exit(code)
    signal.signal(signal.SIGTERM, end)

for name, *values in json.loads(os.environ['PLAY'])[number]:
    if name == 'print':
        say(values[0])
    elif name == 'stderr':
        say(values[0], sys.stderr)
    elif name == 'part':
        sys.stdout.write(values[0])
    elif name == 'env':
        say(' '.join(os.environ.get(value, '-') for value in values))
    elif name == 'argv':
        say(json.dumps(sys.argv[4:]))
    elif name == 'sleep':
        time.sleep(values[0])
    elif name == 'on_term':
        on_term(*values)
    elif name == 'ignore_term':
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif name == 'child':
        subprocess.Popen(['sleep', '600'], start_new_session=values == ['session'])
    elif name == 'kill':
        os.kill(os.getpid(), values[0])
    elif name == 'touch':
        open(os.environ['FOLDER'] + '/' + values[0], 'w').close()
    elif name == 'await':
        while not os.path.exists(os.environ['FOLDER'] + '/' + values[0]):
            time.sleep(0.01)
    elif name == 'exit':
        sys.exit(values[0])
"""

READY = ['print', 'ready']
# Longer than any test waits, so that a test fails if nothing ends it.
LONG = ['sleep', 300]
WAITS = 120  # seconds for local.sh to end, even on a busy machine
SAVES = [['on_term', 42], ['touch', 'set'], LONG]
HANGS = [['ignore_term'], ['touch', 'set'], LONG]


class Run:
    """One start of local.sh; all processes that it starts have a mark in their environment."""

    def __init__(self, folder: Path):
        self.mark = f'LOCAL_TEST_MARK={folder}'
        program = folder / 'python'
        program.write_text(PROGRAM)
        program.chmod(0o755)
        inherited = ('XLA_FLAGS', 'DEVICES', 'PORT', 'GRACE', 'PYTHONUNBUFFERED')
        self.env = {k: v for k, v in os.environ.items() if k not in inherited}
        self.env |= {
            'PYTHON': str(program),
            'LOCAL_TEST_MARK': str(folder),
            'FOLDER': str(folder),
            'GRACE': '200',
        }

    def start(self, play: list, *words: str, count: int | None = None, **env: str):
        command = [str(LOCAL), str(count or len(play)), 'c.py:full', *words]
        return subprocess.Popen(
            command,
            env=self.env | {'PLAY': json.dumps(play)} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=hear_signals,
        )

    def __call__(self, play: list, *words: str, **options):
        return self.finish(self.start(play, *words, **options))

    def finish(self, process) -> subprocess.CompletedProcess:
        out, err = process.communicate(timeout=WAITS)
        assert self.left() == [], 'processes were left behind'
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def left(self) -> list[str]:
        """The command lines of all processes that have the mark, including prefixers."""
        commands = []
        for folder in Path('/proc').glob('[0-9]*'):
            try:
                # Both files are empty for a zombie.
                if self.mark.encode() in (folder / 'environ').read_bytes().split(b'\0'):
                    commands.append((folder / 'cmdline').read_text().replace('\0', ' '))
            except OSError:
                continue
        return commands


@pytest.fixture
def local(tmp_path):
    run = Run(tmp_path)
    yield run
    for folder in Path('/proc').glob('[0-9]*'):  # left over by a test that failed
        try:
            if run.mark.encode() in (folder / 'environ').read_bytes().split(b'\0'):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue


def when(*names: str) -> list:
    return [['await', name] for name in names]


def lines_of(out: str, number: int) -> list[str]:
    start = f'[{number}] '
    return [line.removeprefix(start) for line in out.splitlines() if line.startswith(start)]


def wait_for(process, text: str, times: int) -> str:
    """Reads and returns the output until it contains `text` so many times."""
    seen = ''
    while seen.count(text) < times:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    return seen


def test_all_finish(local):
    done = local([[READY, ['stderr', 'warned']], [READY]])
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == ['[0] ready', '[0] warned', '[1] ready']
    assert done.stderr == ''


def test_arguments_reach_each_process(local):
    words = ["--config.augment=(('shift', 1),)", '--workdir=a b', '--config.note=$HOME *']
    done = local([[['argv']], [['argv']], [['argv']]], *words, PORT='23456')
    for number in range(3):
        assert json.loads(lines_of(done.stdout, number)[0]) == [
            '--config=c.py:full',
            '--coordinator=127.0.0.1:23456',
            '--processes=3',
            f'--process={number}',
            *words,
        ]


def test_one_process_needs_no_coordinator(local):
    done = local([[['argv']]], '--workdir=w')
    assert json.loads(lines_of(done.stdout, 0)[0]) == ['--config=c.py:full', '--workdir=w']


def test_all_get_the_same_free_port(local):
    done = local([[['argv']], [['argv']]])
    ports = {
        word.rpartition(':')[2]
        for number in range(2)
        for word in json.loads(lines_of(done.stdout, number)[0])
        if word.startswith('--coordinator=')
    }
    assert len(ports) == 1
    with socket.socket() as free:
        free.bind(('127.0.0.1', int(ports.pop())))


def test_environment(local):
    names = ['env', 'JAX_PLATFORMS', 'XLA_FLAGS']
    flag = '--xla_force_host_platform_device_count'
    for given, expected in (
        ({}, f'cpu {flag}=1'),
        ({'DEVICES': '4', 'JAX_PLATFORMS': 'cuda'}, f'cuda {flag}=4'),
        ({'XLA_FLAGS': '--xla_a=1'}, 'cpu --xla_a=1'),
        ({'XLA_FLAGS': '--xla_a=1', 'DEVICES': '2'}, f'cpu --xla_a=1 {flag}=2'),
    ):
        done = local([[names]], **given)
        assert lines_of(done.stdout, 0) == [expected]


def test_lines_appear_at_once_and_in_order(local):
    later = ['sleep', 0.4]
    process = local.start(
        [
            [['print', 'first'], later, ['touch', 'a'], ['await', 'b'], ['print', 'third'], LONG],
            [['await', 'a'], ['print', 'second'], later, ['touch', 'b'], LONG],
        ]
    )
    seen = wait_for(process, 'third', 1)
    assert seen.splitlines() == ['[0] first', '[1] second', '[0] third']
    process.terminate()
    local.finish(process)


def test_a_line_without_a_newline_is_not_lost(local):
    assert local([[['part', 'no newline']]]).stdout == '[0] no newline\n'


@pytest.mark.parametrize('code', [1, 2, 3])
def test_first_failure_stops_the_others(local, code):
    """SIGTERM ends the others, not SIGKILL: GRACE is longer than any test waits."""
    waits = [['on_term', 42], READY]
    last = [*waits, ['touch', 'last'], LONG]
    done = local(
        [[*waits, ['touch', 'first'], LONG], [*when('first', 'last'), ['exit', code]], last]
    )
    assert done.returncode == code
    assert lines_of(done.stdout, 0) == lines_of(done.stdout, 2) == ['ready', 'saved']
    assert f'process 1 ended with code {code}' in done.stderr


def test_42_from_all_that_fail(local):
    done = local([SAVES, [*when('set'), ['exit', 42]]])
    assert done.returncode == 42


def test_finished_ones_do_not_stop_the_others(local):
    done = local([[['exit', 0]], [['sleep', 0.5], READY]])
    assert done.returncode == 0
    assert lines_of(done.stdout, 1) == ['ready']


@pytest.mark.parametrize('code', [1, 2])
def test_crash_wins_over_42(local, code):
    """The others may detect a crash, and exit with 42, before the crashed process has ended."""
    crash = [['on_term', code, 0.3], ['touch', 'set'], LONG]
    done = local([[*when('set'), ['exit', 42]], crash])
    assert done.returncode == code


def test_killed_from_outside_is_a_crash(local):
    """As by the kernel when memory runs out."""
    done = local([SAVES, [*when('set'), ['kill', signal.SIGKILL]]])
    assert done.returncode == 137


def test_one_that_does_not_stop_is_killed(local):
    begun = time.monotonic()
    done = local([HANGS, [*when('set'), ['exit', 3]]], GRACE='1')
    assert done.returncode == 3
    assert time.monotonic() - begun >= 1
    assert '1 of 2 processes did not stop within 1 s' in done.stderr


def test_killed_by_the_script_does_not_hide_42(local):
    done = local([HANGS, [*when('set'), ['exit', 42]]], GRACE='1')
    assert done.returncode == 42


def test_a_process_that_cannot_save_yet_does_not_hide_42(local):
    done = local([[LONG], [['sleep', 0.3], ['exit', 42]]])
    assert done.returncode == 42


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize('code', [42, 1])
def test_signals_are_forwarded_as_sigterm(local, sent, code):
    process = local.start([[['on_term', 42], READY, LONG], [['on_term', code], READY, LONG]])
    wait_for(process, 'ready', 2)
    process.send_signal(sent)
    done = local.finish(process)
    assert done.returncode == code
    assert sorted(done.stdout.splitlines()) == ['[0] saved', '[1] saved']


def test_ctrl_c_of_a_terminal(local):
    """It is sent to the terminal's whole group, which the programs must not be in.

    Their last lines must be written nevertheless.
    """
    process = local.start([[['on_term', 42], READY, LONG]] * 2)
    wait_for(process, 'ready', 2)
    os.killpg(process.pid, signal.SIGINT)
    done = local.finish(process)
    assert done.returncode == 42
    assert sorted(done.stdout.splitlines()) == ['[0] saved', '[1] saved']


def test_stopped_before_anything_could_be_saved(local):
    process = local.start([[READY, LONG], [READY, LONG]])
    wait_for(process, 'ready', 2)
    process.terminate()
    assert local.finish(process).returncode == 143


@pytest.mark.parametrize('kind', ['group', 'session'])
def test_children_do_not_outlive_their_process(local, kind):
    """A child that has left the group does not delay the end of local.sh either."""
    process = local.start([[['child', kind], READY]])
    out, _ = process.communicate(timeout=WAITS)
    assert process.returncode == 0 and out == '[0] ready\n'
    left = local.left()
    assert left == ([] if kind == 'group' else ['sleep 600 '])  # documented: its own session


@pytest.mark.parametrize(
    'words, message',
    [
        ([], 'usage: launch/local.sh N CONFIG'),
        (['2'], 'usage: launch/local.sh N CONFIG'),
        (['c.py', '2'], "not 'c.py'"),
        (['0', 'c.py'], "not '0'"),
        (['-1', 'c.py'], "not '-1'"),
        (['1.5', 'c.py'], "not '1.5'"),
        (['', 'c.py'], "not ''"),
    ],
)
def test_wrong_use(words, message):
    done = subprocess.run([LOCAL, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ''
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr


@pytest.mark.parametrize(
    'name, value',
    [('GRACE', 'x'), ('PORT', '1e3'), ('DEVICES', '0'), ('PYTHON', '/nowhere/python')],
)
def test_wrong_environment(name, value):
    done = subprocess.run(
        [LOCAL, '2', 'c.py'], capture_output=True, text=True, env=os.environ | {name: value}
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and value in done.stderr
