"""SIGTERM requests a stop, and all processes of a run stop at the same step."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest
from jax.experimental import multihost_utils

from jaxtrain.pod.stop import StopRequest
from tests.conftest import ROOT
from tests.pod.test_meet import free_port, until


def ask(times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def handled():
    """The signals that arrive at the handler outside of a StopRequest."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def agreed(monkeypatch):
    """Replaces the agreement of JAX's processes: the number where all stop, and those asked."""
    agreement = {'stop': None, 'asked': []}

    def reached(number: int) -> bool:
        agreement['asked'].append(number)
        return number == agreement['stop']

    monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', reached)
    return agreement


@pytest.mark.parametrize('times', [1, 2, 20])
def test_asked(handled, times):
    with StopRequest() as stop:
        assert not stop.asked() and not stop.asked_here()
        ask(times)
        assert stop.asked() and stop.asked_here() and stop.asked()
    assert not handled


def test_the_handler_is_restored(handled):
    with StopRequest():
        ask()
    ask()
    assert handled == [signal.SIGTERM]


def test_the_handler_is_restored_after_an_error(handled):
    with contextlib.suppress(KeyError), StopRequest():
        raise KeyError
    ask()
    assert handled == [signal.SIGTERM]


def test_one_after_the_other(handled):
    """As in a comparison: a stop of one arm does not stop the next."""
    with StopRequest():
        ask()
    with StopRequest() as stop:
        assert not stop.asked()


def test_not_in_the_main_thread(handled):
    """Python accepts no handler there: the old one stays, and no request arrives."""
    answers = []

    def run() -> None:
        with StopRequest() as stop:
            answers.append(stop.asked())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    ask()
    assert answers == [False] and handled == [signal.SIGTERM]


def test_several_are_asked_by_number(agreed):
    """Every process asks equally often, however many steps a call runs."""
    with StopRequest() as stop:
        stop.spread()
        agreed['stop'] = 3
        assert [stop.asked() for _ in range(5)] == [False, False, True, True, True]
    assert agreed['asked'] == [1, 2, 3]  # once all know, no process asks again


def test_asked_before_they_are_joined(handled, agreed):
    """JAX's notifier gets the signal, and decides when to stop: the others do not know yet."""
    with StopRequest() as stop:
        ask(2)
        assert stop.asked_here()
        signals = []
        signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))  # as JAX's is, in C
        stop.spread()
        assert signals == [signal.SIGTERM]
        agreed['stop'] = 2
        assert [stop.asked() for _ in range(3)] == [False, True, True]


def test_not_asked_before_they_are_joined(handled, agreed):
    with StopRequest() as stop:
        signals = []
        signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
        stop.spread()
        assert not signals and not stop.asked()


# A process that runs until it must stop; the second may get SIGTERM before JAX has connected them.
MEMBER = """
import os, signal, sys, time
import jax
from jaxtrain.pod.join import join
from jaxtrain.pod.place import Place

number, initialize = int(sys.argv[1]), jax.distributed.initialize

def asked_just_before(*words, **more):
    if number and sys.argv[3] == 'before':
        os.kill(os.getpid(), signal.SIGTERM)
    initialize(*words, **more)

jax.distributed.initialize = asked_just_before
with join(Place(2, number, '127.0.0.1:' + sys.argv[2]), {}, 60.0) as pod:
    print('met', flush=True)
    times = 1
    while not pod.stop.asked():
        time.sleep(0.01)
        times += 1
print('stopped at', times, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize('when', ['before', 'after'])
def test_two_stop_together(tmp_path, when):
    """Real processes with JAX's own agreement; only one of them gets SIGTERM."""
    port, members = free_port(), []
    logs = [tmp_path / str(number) for number in range(2)]
    try:
        for number, log in enumerate(logs):
            with log.open('w') as file:
                words = [sys.executable, '-c', MEMBER, str(number), str(port), when]
                members.append(subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file))
        if when == 'after':
            until(lambda: all('met' in log.read_text() for log in logs))
            for _ in range(3):
                members[1].send_signal(signal.SIGTERM)
        codes = [member.wait(60) for member in members]
        output = [log.read_text() for log in logs]
        assert codes == [0, 0], output
        stopped = [text.partition('stopped at')[2].split()[0] for text in output]
        assert stopped[0] == stopped[1], output
    finally:
        for member in members:
            member.kill()
            member.wait(60)
