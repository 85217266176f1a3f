"""Processes connect before a run, or report why they cannot."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from jaxtrain.errors import Preempted, UserError
from jaxtrain.pod.meet import LATE, meet
from jaxtrain.pod.peers import Peers
from jaxtrain.pod.place import Place
from tests.conftest import ROOT

HOST = socket.gethostname()
GONE = 'is gone'  # how the others report a process that ended without a message


def free_port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def until(true, seconds: float = 60.0):
    """Waits until `true` returns something true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < deadline, 'the condition did not become true in time'
        time.sleep(0.01)
    return result


class Meeting:
    """Processes that connect, each in a thread; the keys number them in the order of `connect`.

    Attributes:
      results: Peers, or the exception, of each.
      seconds: how long each took.
    """

    def __init__(self, processes: int):
        self.processes, self.port = processes, free_port()
        self.results: dict[int, object] = {}
        self.seconds: dict[int, float] = {}
        self._threads: list[threading.Thread] = []

    def connect(self, process: int, facts=None, timeout=30.0, processes=0, stopped=lambda: False):
        """Starts a process; returns its key."""
        key = len(self._threads)
        place = Place(processes or self.processes, process, f'127.0.0.1:{self.port}')

        def run() -> None:
            began = time.monotonic()
            try:
                self.results[key] = meet(place, facts or {}, timeout, stopped)
            except Exception as error:
                # Without its frames, which would keep the connections open: no process ends here.
                self.results[key] = error.with_traceback(None)
            self.seconds[key] = time.monotonic() - began

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()
        return key

    def end(self) -> list:
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive()
        return [self.results[key] for key in range(len(self._threads))]

    def waits(self) -> None:
        """Returns once process 0 listens."""

        def listens() -> bool:
            with contextlib.suppress(OSError):
                socket.create_connection(('127.0.0.1', self.port)).close()
                return True
            return False

        until(listens)


def met(results: list) -> bool:
    return all(isinstance(result, Peers) for result in results)


def test_light():
    """Processes connect before JAX starts, and this module must not import it."""
    script = (
        'import sys, jaxtrain.pod.meet; print([m for m in ("jax", "numpy") if m in sys.modules])'
    )
    assert subprocess.check_output([sys.executable, '-c', script], cwd=ROOT, text=True) == '[]\n'


# All processes connect.


@pytest.mark.parametrize('order', ['0123', '3210', '2031'])
def test_all_meet(order):
    """In any order, process 0 last too; nobody continues before all have connected."""
    meeting = Meeting(4)
    for number in order[:-1]:
        meeting.connect(int(number), {'steps': 3})
    time.sleep(0.3)
    assert not meeting.results
    meeting.connect(int(order[-1]), {'steps': 3})
    results = meeting.end()
    assert met(results)
    hosts = {link.process: link.host for link in results[order.index('0')]._links}
    assert hosts == {1: HOST, 2: HOST, 3: HOST}
    assert [link.process for link in results[order.index('1')]._links] == [0]


def test_alone():
    with meet(Place(), {}, 0.0) as alone:
        assert alone._links == []


def test_jax_takes_the_port_over():
    """Its coordinator listens on the same port, while the connections stay open."""
    meeting = Meeting(2)
    meeting.connect(0)
    meeting.connect(1)
    results = meeting.end()
    assert met(results)
    with socket.create_server(('', meeting.port)):
        results[0]._links[0].send(at=['train', 1, 0.0])
        assert results[1]._links[0].receive() == [{'at': ['train', 1, 0.0]}]


def test_facts_are_compared_as_json():
    meeting = Meeting(2)
    meeting.connect(0, {'size': (1, 2), 'lr': 0.1})
    meeting.connect(1, {'size': [1, 2], 'lr': 0.1})
    assert met(meeting.end())


# They do not connect, or differ.


def test_missing_ones_are_named():
    meeting = Meeting(5)
    for number in (0, 2, 4):
        meeting.connect(number, timeout=1.0)
    results = meeting.end()
    for result in results:
        assert isinstance(result, Preempted)
        where = f'127.0.0.1:{meeting.port}'
        assert f'processes 1, 3 of 5 did not connect to {where} within 1 s' in str(result)
    # A busy machine delays how soon the others learn of it, not when process 0 gives up.
    assert 1.0 <= meeting.seconds[0] < 4.0
    assert max(meeting.seconds.values()) < 6.0


def test_a_later_process_waits_for_process_0():
    """Process 0 knows which processes are missing, and it may have more time left."""
    meeting = Meeting(3)
    meeting.connect(0, timeout=2.0)
    meeting.waits()
    meeting.connect(1, timeout=0.2)
    for result in meeting.end():
        assert f'process 2 of 3 did not connect to 127.0.0.1:{meeting.port} within 2 s' in str(
            result
        )


def test_many_missing_ones():
    meeting = Meeting(20)
    meeting.connect(0, timeout=0.5)
    assert 'processes 1, 2, 3, 4, 5, 6, 7, 8 and 11 more of 20 did' in str(meeting.end()[0])


def test_process_0_is_missing():
    meeting = Meeting(2)
    meeting.connect(1, timeout=1.0)
    (result,) = meeting.end()
    assert isinstance(result, Preempted)
    message = f'process 1 could not reach process 0 at 127.0.0.1:{meeting.port} within 1 s'
    assert message in str(result)
    assert meeting.seconds[0] < 7.0


def test_processes_that_differ():
    """All report which process differs, its host and the keys; not only the one that differs."""
    meeting = Meeting(4)
    facts = {'config.seed': 1, 'config.steps': 100, 'git': 'abc'}
    meeting.connect(0, facts)
    meeting.connect(1, facts)
    meeting.connect(2, facts | {'config.seed': 2, 'config.lr': 0.5})
    meeting.connect(3, facts)
    results = meeting.end()
    for result in results:
        assert isinstance(result, UserError)
        assert f'process 2 ({HOST}) differs' in str(result)
        assert 'config.seed is 2 there and 1 on process 0' in str(result)
        assert 'config.lr is 0.5 there and None on process 0' in str(result)
        assert 'steps' not in str(result) and 'start all with the same' in str(result)


def test_processes_that_connect_later_get_the_error_too():
    """They would otherwise wait for a process 0 that is gone, and never report the reason."""
    meeting = Meeting(3)
    meeting.connect(0, {'seed': 1})
    meeting.connect(1, {'seed': 2}, timeout=20.0)
    time.sleep(0.5)
    meeting.connect(2, {'seed': 1}, timeout=20.0)
    assert ['seed is 2 there' in str(result) for result in meeting.end()] == [True] * 3
    assert max(meeting.seconds.values()) < LATE + 5.0


def test_many_differences():
    meeting = Meeting(2)
    meeting.connect(0, {f'k{n}': 0 for n in range(6)})
    meeting.connect(1, {f'k{n}': 1 for n in range(6)})
    for result in meeting.end():
        assert 'k2 is 1 there' in str(result) and ' and 3 more;' in str(result)
        assert 'k3' not in str(result)
    assert meeting.seconds[0] < LATE, 'all have connected: there is nobody to wait for'


def test_two_with_the_same_number():
    meeting = Meeting(3)
    meeting.connect(0)
    meeting.connect(1)
    meeting.connect(1)
    for result in meeting.end():
        assert isinstance(result, UserError)
        assert f'process 1 was started twice, on {HOST} and {HOST}' in str(result)
        assert '--process' in str(result)


def test_a_process_that_is_restarted_while_they_wait():
    """It does not count twice, however often: a job manager restarts what it has stopped."""
    meeting = Meeting(3)
    meeting.connect(0)
    stop = threading.Event()
    for _ in range(2):
        stop.clear()
        key = meeting.connect(1, stopped=stop.is_set)
        time.sleep(0.3)
        stop.set()
        until(lambda key=key: key in meeting.results)
        assert isinstance(meeting.results[key], Preempted)
    again = [meeting.connect(1), meeting.connect(2)]
    results = meeting.end()
    assert met([results[0], *(results[key] for key in again)])


@pytest.mark.parametrize('here, there', [(2, 3), (3, 2)])
def test_another_number_of_processes(here, there):
    meeting = Meeting(here)
    meeting.connect(0)
    for number in range(1, max(here, there)):
        meeting.connect(number, processes=there)
    for result in meeting.end():
        assert isinstance(result, UserError)
        assert f'expects {there} processes, but process 0 expects {here};' in str(result)
        assert '--processes' in str(result)


def test_port_in_use():
    with socket.create_server(('', 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError) as raised:
            meet(Place(2, 0, f'localhost:{port}'), {}, 5.0)
    assert f'port {port} of localhost cannot be used' in str(raised.value)
    assert 'choose another' in str(raised.value)


# Other programs connect.


PROGRAMS = {
    'HTTP': b'GET / HTTP/1.1\r\nHost: x\r\n\r\n',
    'binary': bytes(range(256)) * 10,
    'JSON': b'1\n[]\n"hello"\nnull\n',
    'nested': b'[' * 30_000 + b'\n',
    'another version': b'{"hello": "jaxtrain-0", "process": 1}\n',
    'half a line': b'{"hello": "jax',
    'nothing': b'',
}


@pytest.mark.parametrize('kind', PROGRAMS)
def test_another_program_on_the_port_does_not_stop_them(kind):
    """It does not delay them either, even if it sends nothing."""
    meeting = Meeting(3)
    meeting.connect(0)
    meeting.waits()
    with contextlib.ExitStack() as programs:
        for _ in range(3):
            program = socket.create_connection(('127.0.0.1', meeting.port), timeout=10)
            programs.enter_context(program).sendall(PROGRAMS[kind])
        meeting.connect(1)
        time.sleep(0.1)
        programs.enter_context(socket.create_connection(('127.0.0.1', meeting.port)))
        meeting.connect(2)
        assert met(meeting.end())
    assert max(meeting.seconds.values()) < 8.0


def test_another_program_that_connects_and_leaves():
    """Such as one that checks whether a port is open."""
    meeting = Meeting(2)
    meeting.connect(0)
    meeting.waits()
    for _ in range(20):
        socket.create_connection(('127.0.0.1', meeting.port)).close()
    meeting.connect(1)
    assert met(meeting.end())


def test_missing_ones_are_named_in_time_despite_other_programs():
    meeting = Meeting(2)
    meeting.connect(0, timeout=1.0)
    meeting.waits()
    with contextlib.closing(socket.create_connection(('127.0.0.1', meeting.port))):
        (result,) = meeting.end()
    assert isinstance(result, Preempted) and meeting.seconds[0] < 4.0


def test_a_web_server_where_process_0_should_be():
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with HTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f'127.0.0.1:{server.server_port}'
        with pytest.raises(UserError, match=f'a program other than jaxtrain answers at {address}'):
            meet(Place(2, 1, address), {}, 10.0)
        server.shutdown()


@pytest.mark.parametrize('answer', [b'220 mail ESMTP\n', b'1\n', b'{"a": 1}\n'])
def test_another_server_where_process_0_should_be(answer):
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = f'127.0.0.1:{server.getsockname()[1]}'

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.sendall(answer)
                connection.recv(1 << 16)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(UserError, match=f'a program other than jaxtrain answers at {address}'):
            meet(Place(2, 1, address), {}, 10.0)


# A request to stop while they wait.


@pytest.mark.parametrize('number', [0, 1])
def test_a_stop_while_waiting(number):
    """The one that is stopped ends at once; the others keep waiting, or report that 0 is gone."""
    meeting, stop = Meeting(3), threading.Event()
    keys = [
        meeting.connect(n, timeout=3.0 + n, stopped=stop.is_set if n == number else lambda: False)
        for n in (0, 1)
    ]
    time.sleep(0.5)
    assert not meeting.results
    stop.set()
    began = time.monotonic()
    until(lambda: keys[number] in meeting.results)
    assert time.monotonic() - began < 2.0, 'it ended only when its time was up'
    results = meeting.end()
    assert 'stopped while waiting' in str(results[number])
    ended, missing = 'ended before all had connected', 'processes 1, 2 of 3 did not connect'
    assert (missing if number else ended) in str(results[1 - number])
    assert all(isinstance(result, Preempted) for result in results)


def test_a_stop_before_process_0_is_there():
    meeting, stop = Meeting(2), threading.Event()
    meeting.connect(1, stopped=stop.is_set)
    time.sleep(0.3)
    stop.set()
    assert 'stopped while waiting' in str(meeting.end()[0])
    assert meeting.seconds[0] < 3.0
