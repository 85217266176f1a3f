"""Connected processes detect which of them is gone, or hangs.

The processes here are real, but do not use JAX: the main thread of each waits, as in a collective
that does not end, until a test sends it a line of Python to run.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxtrain.pod.meet import VERSION
from tests.conftest import ROOT, Outcome
from tests.pod.test_meet import GONE, HOST, free_port, until

# A process of a run, started by the real command line, so that it ends as `jaxtrain train` does.
MEMBER = """
import json, os, signal, sys, threading, time, types
from jaxtrain import cli
from jaxtrain.errors import Preempted, UserError
from jaxtrain.pod import peers
from jaxtrain.pod.meet import meet
from jaxtrain.pod.place import Place

def member(_):
    number, processes, port = map(int, sys.argv[1:4])
    for name, value in json.loads(sys.argv[4]).items():
        setattr(peers, name, value)
    place = Place(processes, number, f'127.0.0.1:{port}' if processes > 1 else '')
    at = ['train', 0, 0.0]
    with meet(place, {}, 60.0) as p:
        p.position = lambda: tuple(at)
        p.dump = lambda: print('DUMPED', file=sys.stderr, flush=True)
        print('met', flush=True)
        # One namespace for all lines, so that a line can use what an earlier one defines.
        names = {**globals(), 'p': p, 'at': at}
        for line in sys.stdin:
            exec(line, names)

cli.COMMANDS['member'] = types.SimpleNamespace(FLAGS=(), WORDS='', run=member)
sys.exit(cli.main(['member']))
"""
# Shorter times, for tests that do not measure them.
SHORT = {'GRACE': 1.0}


class Member:
    """A process started by MEMBER; what it prints goes to files."""

    def __init__(self, folder: Path, number: int, processes: int, port: int, constants: dict):
        self._files = [folder / f'{number}.{name}' for name in ('out', 'err')]
        with self._files[0].open('w') as out, self._files[1].open('w') as err:
            self.process = subprocess.Popen(
                [sys.executable, '-c', MEMBER, *map(str, (number, processes, port)),
                 json.dumps(constants)],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=out, stderr=err, text=True,
            )  # fmt: skip

    def do(self, line: str) -> None:
        self.process.stdin.write(line + '\n')
        self.process.stdin.flush()

    def freeze(self) -> None:
        """Stops all of its threads, and returns once they are stopped."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def output(self) -> list[str]:
        return [file.read_text() for file in self._files]

    def wait_for(self, text: str) -> None:
        until(lambda: text in self.output()[0] or self.process.poll() is not None)
        assert text in self.output()[0], self.output()

    def end(self, seconds: float = 60.0) -> Outcome:
        self.process.wait(seconds)
        return Outcome(self.process.returncode, *self.output())


@pytest.fixture
def run_of(tmp_path):
    """Starts connected processes, with constants of peers.py replaced: `run_of(3, GRACE=0.5)`."""
    started: list[Member] = []

    def start(processes: int, **constants: float) -> list[Member]:
        port = free_port()
        members = [Member(tmp_path, n, processes, port, constants) for n in range(processes)]
        started.extend(members)
        for member in members:
            member.wait_for('met')
        return members

    yield start
    for member in started:
        member.process.kill()
        member.process.stdin.close()
        member.process.wait(60)


# One is gone after they have connected.


def test_one_is_killed(run_of):
    """All the others report it at once, by name."""
    members = run_of(3)
    began = time.monotonic()
    members[1].process.kill()
    for number in (0, 2):
        code, _, err = members[number].end(10)
        assert (code, err.count('\n')) == (42, 1)
        assert f'process 1 ({HOST}) {GONE}; start the same command again to go on' in err
    assert time.monotonic() - began < 3.0


def test_process_0_is_killed(run_of):
    members = run_of(3)
    began = time.monotonic()
    members[0].process.kill()
    for member in members[1:]:
        code, _, err = member.end(10)
        assert code == 42 and f'process 0 ({HOST}) {GONE}' in err
    assert time.monotonic() - began < 3.0


@pytest.mark.parametrize('silent', [0, 1])
def test_one_is_silent(run_of, silent):
    """As when a machine vanishes: nothing closes the connection."""
    members = run_of(3, SILENCE=2.0, BEAT=0.1)
    began = time.monotonic()
    members[silent].freeze()
    for number in {0, 1, 2} - {silent}:
        code, _, err = members[number].end(20)
        assert code == 42 and f'process {silent} ({HOST}) has sent nothing for 2 s' in err
    assert 1.8 < time.monotonic() - began < 8.0
    members[silent].process.send_signal(signal.SIGCONT)
    assert members[silent].end(20).code == 42  # it detects that the others are gone


def test_a_busy_main_thread_is_not_silence(run_of):
    """Whatever the main thread does, the lines continue."""
    members = run_of(2, SILENCE=2.0, BEAT=0.1)
    time.sleep(3.5)
    assert [member.process.poll() for member in members] == [None, None]
    for member in members:
        member.process.stdin.close()
    assert [member.end() for member in members] == [(0, 'met\n', '')] * 2


# One ends by itself.


@pytest.mark.parametrize('wrong', [0, 1])
def test_one_ends_with_wrong_input(run_of, wrong):
    members = run_of(3, **SHORT)
    members[wrong].do('raise UserError("no such folder")')
    for number, member in enumerate(members):
        code, _, err = member.end(20)
        assert (code, err.count('\n')) == (2, 1)
        if number == wrong:
            assert err == 'jaxtrain: no such folder\n'
        else:
            why = f'process {wrong} ({HOST}) ended with an error: no such folder'
            assert err == f'jaxtrain: {why}\n'


@pytest.mark.parametrize('wrong', [0, 1])
def test_one_crashes(run_of, wrong):
    members = run_of(3, **SHORT)
    members[wrong].do('raise ZeroDivisionError("of a bug")')
    for number, member in enumerate(members):
        code, _, err = member.end(20)
        assert code == 1
        if number == wrong:
            assert 'Traceback' in err
        else:
            assert f'process {wrong} ({HOST}) ended with an error: ZeroDivisionError: of a' in err


def test_process_0_ends_as_soon_as_they_are_connected(tmp_path):
    """Its last line may arrive together with its welcome."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        member = Member(tmp_path, 1, 2, server.getsockname()[1], SHORT)
        with server.accept()[0] as connection:
            connection.recv(1 << 16)
            welcome = {'welcome': VERSION, 'host': HOST}
            lines = [welcome, {'bye': 2, 'why': 'no such folder'}]
            connection.sendall(b''.join(json.dumps(line).encode() + b'\n' for line in lines))
            connection.shutdown(socket.SHUT_WR)
            why = f'process 0 ({HOST}) ended with an error: no such folder'
            assert member.end(20) == (2, 'met\n', f'jaxtrain: {why}\n')


def test_an_error_on_all(run_of):
    """Such as a loss that is not finite: each reports it itself, and ends by itself."""
    members = run_of(3, GRACE=3.0)
    for member in members:
        member.do('raise UserError("the loss is nan")')
    for member in members:
        assert member.end(20) == (2, 'met\n', 'jaxtrain: the loss is nan\n')


def test_all_finish(run_of):
    members = run_of(3)
    for member in members:
        member.process.stdin.close()
    assert [member.end(20) for member in members] == [(0, 'met\n', '')] * 3


@pytest.mark.parametrize('first', [0, 2])
def test_one_is_done_first(run_of, first):
    """It does not disturb the others, even if they take longer than GRACE."""
    members = run_of(3, GRACE=0.2)
    members[first].process.stdin.close()
    assert members[first].end(20) == (0, 'met\n', '')
    time.sleep(0.7)
    rest = [member for number, member in enumerate(members) if number != first]
    assert [member.process.poll() for member in rest] == [None, None]
    for member in rest:
        member.do('print("on", flush=True)')
        member.wait_for('on')
        member.process.stdin.close()
    assert [member.end(20) for member in rest] == [(0, 'met\non\n', '')] * 2


def test_a_finished_process_does_not_wait_for_one_that_is_gone(run_of):
    """JAX would wait for minutes, because its processes disconnect together."""
    members = run_of(2, **SHORT)
    members[0].do('import atexit; atexit.register(time.sleep, 100)')
    members[0].do('atexit.register(lambda: print("left", flush=True))')
    members[0].process.stdin.close()
    members[0].wait_for('left')
    members[1].process.kill()
    assert members[0].end(20) == (0, 'met\nleft\n', '')


def test_an_error_because_a_peer_is_gone(run_of):
    """The cause is that the peer is gone, so starting again (42) is right.

    Recording the end may fail by then, because the error has closed the file.
    """
    members = run_of(2, GRACE=3.0)
    members[1].do('def failing(why, code): raise ValueError("I/O operation on closed file")')
    members[1].do('p.on_end = failing')
    members[1].do('print("ready", flush=True)')
    members[1].wait_for('ready')
    members[1].do('raise RuntimeError("Connection closed by peer")')
    members[0].process.kill()
    code, _, err = members[1].end(20)
    assert code == 42 and 'process 0' in err


# What a process does before it ends because of another one.


def test_on_end_is_told(run_of):
    members = run_of(2)
    members[1].do('p.on_end = lambda why, code: print("TOLD", why, code, flush=True)')
    members[1].do('print("ready", flush=True)')
    members[1].wait_for('ready')
    members[0].process.kill()
    assert members[1].end(20).out.endswith(f'TOLD process 0 ({HOST}) {GONE} 42\n')


@pytest.mark.parametrize('act', ['time.sleep(1000)', '1 / 0', 'threading.Lock().acquire() + [0]'])
def test_an_end_that_fails_or_hangs_does_not_keep_the_process(run_of, act):
    """It writes to a disk, which may be what is gone."""
    members = run_of(2, **SHORT)
    members[1].do(f'p.on_end = lambda why, code: {act}')
    members[1].do('print("ready", flush=True)')
    members[1].wait_for('ready')
    began = time.monotonic()
    members[0].process.kill()
    assert members[1].end(20).code == 42
    assert time.monotonic() - began < 5.0


# One hangs.


def hang(members: list[Member], positions: list[tuple], noticed: int) -> list[Outcome]:
    """Makes one detect a hang, once the others have sent what they are doing."""
    put(members, positions)
    members[noticed].do('p.hang("train made no progress for 9 s")')
    return [member.end(20) for member in members]


def put(members: list[Member], positions: list[tuple]) -> None:
    """Sets what each is doing, and waits until process 0 has received it."""
    for member, position in zip(members, positions, strict=True):
        member.do(f'at[:] = {position!r}; print("doing", flush=True)')
        member.wait_for('doing')
    until(lambda: _known(members[0], positions))


def _known(zero: Member, positions: list[tuple]) -> bool:
    """Whether process 0 has received what the others are doing."""
    zero.do('print("knows", [list(link.at[:2]) for link in p._links], flush=True)')
    time.sleep(0.05)
    return f'knows {[list(p[:2]) for p in positions[1:]]}' in zero.output()[0]


@pytest.mark.parametrize('noticed', [0, 1, 2])
def test_a_hang_names_who_is_behind_by_step(run_of, noticed):
    members = run_of(3, BEAT=1.0)
    positions = [('train', 8, 9.0), ('train', 8, 9.0), ('data_wait', 7, 9.0)]
    why = 'train made no progress for 9 s; behind: process 2 in data_wait at step 7 for '
    why = why if noticed == 0 else f'process {noticed} ({HOST}): {why}'
    for code, _, err in hang(members, positions, noticed):
        assert code == 42 and err.count('DUMPED') == 1
        assert f'jaxtrain: {why}' in err and 'process 1 in' not in err
        assert err.count('jaxtrain:') == 1 and 'start the same command again' in err


@pytest.mark.parametrize('noticed', [0, 1])
def test_a_hang_names_who_is_behind_by_phase(run_of, noticed):
    positions = [('save', 8, 9.0), ('save', 8, 9.0), ('eval', 8, 9.0)]
    for _, _, err in hang(run_of(3, BEAT=1.0), positions, noticed):
        assert 'behind: process 2 in eval at step 8 for ' in err and 'process 0 in' not in err


def test_a_hang_of_process_0(run_of):
    positions = [('data_wait', 7, 9.0), ('train', 8, 9.0), ('train', 8, 9.0)]
    for code, _, err in hang(run_of(3, BEAT=1.0), positions, 1):
        assert code == 42 and 'behind: process 0 in data_wait at step 7' in err


def test_a_hang_of_all(run_of):
    for code, _, err in hang(run_of(2, BEAT=1.0), [('train', 8, 9.0)] * 2, 1):
        assert code == 42 and 'no process is behind the others' in err


def test_a_hang_reports_the_position_of_the_one_that_noticed(run_of):
    """Process 0 does not wait for its next line, as its last one may be out of date."""
    members = run_of(2, BEAT=1000.0)
    members[0].do('at[:] = ("data_wait", 7, 9.0)')
    members[0].do('print("there", flush=True)')
    members[0].wait_for('there')
    members[1].do('at[:] = ("train", 8, 9.0); p.hang("it hangs")')
    for member in members:
        assert 'behind: process 0 in data_wait at step 7' in member.end(20).err


@pytest.mark.parametrize('noticed', [0, 2])
def test_a_hang_names_who_is_silent(run_of, noticed):
    """By its last line, it was where the others are."""
    members = run_of(3, BEAT=1.0)
    put(members, [('train', 8, 9.0)] * 3)
    members[1].freeze()
    time.sleep(2.5)
    members[noticed].do('p.hang("it hangs")')
    for number in (0, 2):
        code, _, err = members[number].end(20)
        assert code == 42 and 'behind: process 1 in train at step 8 for 1' in err
        assert 'process 2 in' not in err
    members[1].process.send_signal(signal.SIGCONT)
    assert members[1].end(20).code == 42


def test_a_hang_that_process_0_does_not_answer(run_of):
    members = run_of(3, GRACE=1.5)  # which includes writing the stacks
    members[0].freeze()
    for member in members[1:]:
        member.do('p.hang("it hangs")')
    for member in members[1:]:
        code, _, err = member.end(20)
        assert code == 42 and 'DUMPED' in err
        assert f'it hangs; process 0 ({HOST}) does not answer' in err


def test_a_hang_alone(run_of):
    (member,) = run_of(1)
    member.do('p.hang("it hangs")')
    assert member.end(20) == (
        42,
        'met\n',
        'DUMPED\njaxtrain: it hangs; start the same command again to go on\n',
    )


@pytest.mark.parametrize('act', ['time.sleep(1000)', '1 / 0'])
def test_stacks_that_cannot_be_written_do_not_keep_the_processes(run_of, act):
    members = run_of(2, **SHORT)
    members[0].do(f'p.dump = lambda: {act}')
    members[0].do('print("ready", flush=True)')
    members[0].wait_for('ready')
    began = time.monotonic()
    members[1].do('p.hang("it hangs")')
    assert [member.end(20).code for member in members] == [42, 42]
    assert time.monotonic() - began < 5.0


# Aborts.


def test_an_abort_is_an_abort(run_of):
    """If all peers are there, the abort stands; the others can be started again."""
    members = run_of(2, **SHORT)
    members[1].do('os.abort()')
    assert members[1].end(20).code == -signal.SIGABRT
    code, _, err = members[0].end(20)
    assert code == 42 and f'process 1 ({HOST}) {GONE}' in err


@pytest.mark.parametrize('where', ['os.abort()', 'threading.Thread(target=os.abort).start()'])
def test_an_abort_because_a_peer_is_gone(run_of, where):
    """JAX aborts first, but does not decide the exit code."""
    members = run_of(2, GRACE=5.0)
    members[0].freeze()  # so that the abort comes first
    members[1].do(f'print("aborts", flush=True); {where}')
    members[1].wait_for('aborts')
    time.sleep(0.3)
    assert members[1].process.poll() is None
    members[0].process.kill()
    code, _, err = members[1].end(20)
    assert code == 42 and f'process 0 ({HOST}) {GONE}' in err


def test_an_abort_of_a_finished_process(run_of):
    """JAX also aborts when the processes disconnect together and one of them is gone."""
    members = run_of(2, **SHORT)
    members[1].do('import atexit; atexit.register(os.abort)')
    members[1].process.stdin.close()
    assert members[1].end(20) == (0, 'met\n', '')


JAX_MEMBER = """
import sys, time, types
from jaxtrain import cli
from jaxtrain.pod.join import join
from jaxtrain.pod.peers import Peers
from jaxtrain.pod.place import Place

# The watching thread is as late as on a busy machine, so JAX's client acts first.
closed = Peers._closed
Peers._closed = lambda self, link: (time.sleep(1.0), closed(self, link))

def member(_):
    with join(Place(2, int(sys.argv[1]), '127.0.0.1:' + sys.argv[2]), {}, 60.0):
        import jax.numpy as jnp
        from jax.experimental import multihost_utils

        print('met', flush=True)
        if sys.argv[1] == '1':
            # As a collective on a TPU does: it waits for the other process forever, in C++.
            multihost_utils.sync_global_devices('there')
        time.sleep(1000)

cli.COMMANDS['member'] = types.SimpleNamespace(FLAGS=(), WORDS='', run=member)
sys.exit(cli.main(['member']))
"""


@pytest.mark.slow
def test_jax_does_not_abort_when_its_coordinator_is_killed(tmp_path):
    """Its client would, with 134, perhaps just before `_watch` detects it."""
    port, members = free_port(), []
    logs = [tmp_path / str(number) for number in range(2)]
    try:
        for number, log in enumerate(logs):
            with log.open('w') as file:
                words = [sys.executable, '-c', JAX_MEMBER, str(number), str(port)]
                members.append(subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file))
        until(lambda: all('met' in log.read_text() for log in logs))
        time.sleep(1.0)
        began = time.monotonic()
        members[0].kill()
        assert members[1].wait(30) == 42, logs[1].read_text()
        assert time.monotonic() - began < 5.0
        assert f'process 0 ({HOST}) {GONE}' in logs[1].read_text()
    finally:
        for member in members:
            member.kill()
            member.wait(60)
