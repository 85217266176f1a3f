"""The last line of a process arrives, even if the process has not read all its own lines."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from jaxtrain.pod.link import Link, configured


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    """Both ends of a connection."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    with here, there:
        yield configured(Link(here, 1)), configured(Link(there, 0))


def test_the_last_line_does_not_wait_for_the_one_before(ends):
    """Otherwise it is lost if the process ends with unread lines."""
    here, there = ends
    for _ in range(20):  # a new connection acknowledges at once
        for one, other in ((there, here), (here, there)):
            one.send(at=['train', 1, 0.0])
            other.receive()
    there.send(at=['train', 2, 0.0])
    here.send(at=['train', 2, 0.0])
    here.send(end='it is over')
    here.socket.close()
    time.sleep(0.05)
    assert list(_all(there)) == [{'at': ['train', 2, 0.0]}, {'end': 'it is over'}]


def _all(link: Link) -> Iterator[dict]:
    while (messages := link.receive()) is not None:
        yield from messages


def full(link: Link) -> None:
    """Sends until the buffers of both ends are full."""
    link.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            link.socket.send(bytes(1 << 16))
    link.socket.setblocking(True)


def test_flush_waits_until_all_has_arrived(ends):
    here, there = ends
    full(here)
    reading = threading.Timer(0.3, lambda: [here.socket.shutdown(socket.SHUT_WR), *_raw(there)])
    began = time.monotonic()
    reading.start()
    here.flush(20)
    assert 0.25 < time.monotonic() - began < 15
    reading.join()


def _raw(link: Link) -> Iterator[bytes]:
    while data := link.socket.recv(1 << 20):
        yield data


def test_flush_waits_no_longer_than_its_limit(ends):
    here, _ = ends
    full(here)
    began = time.monotonic()
    here.flush(0.3)
    assert 0.25 < time.monotonic() - began < 15


@pytest.mark.parametrize('known', [False, True])
def test_flush_does_not_wait_for_a_peer_that_is_gone(ends, known):
    here, there = ends
    there.socket.close()
    if known:
        assert here.receive() is None
    here.send(end='it is over')
    time.sleep(0.05)
    began = time.monotonic()
    here.flush(20)
    assert time.monotonic() - began < 15
