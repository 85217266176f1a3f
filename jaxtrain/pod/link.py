"""A TCP connection between two processes of a run, which carries JSON lines."""

import contextlib
import fcntl
import json
import socket
import sys
import termios
import time
from dataclasses import dataclass, field
from typing import Any

# Seconds that sending a line may take: the other end may have stopped reading.
SENDING = 10.0


@dataclass
class Link:
    """A connection, and what is known about the process at its other end.

    Attributes:
      at: (phase, step, seconds in that phase), as it last reported.
      heard: when it last sent anything, by time.monotonic.
      left: the exit code that it announced before it ended.
      early: lines that arrived together with the first one, not yet handled.
    """

    socket: socket.socket
    process: int
    host: str = ''
    at: tuple[str, int, float] = ('init', 0, 0.0)
    heard: float = field(default_factory=time.monotonic)
    left: int | None = None
    early: list[dict[str, Any]] = field(default_factory=list)
    _rest: bytes = b''

    def send(self, **message: Any) -> None:
        """Sends a line; if the other end is gone, `receive` reports it."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b'\n')

    def flush(self, seconds: float) -> None:
        """Waits until what was sent has arrived, but at most `seconds`.

        If a process ends before it has read all that it received, its connection is reset, and
        lines that have not arrived by then are lost.
        """
        deadline = time.monotonic() + seconds
        while self._unacknowledged() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _unacknowledged(self) -> int:
        """The number of bytes that the other machine has not acknowledged."""
        try:
            self.socket.getpeername()  # fails if the peer is gone: its bytes would stay counted
            count = fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(count, sys.byteorder)

    def receive(self) -> list[dict[str, Any]] | None:
        """The lines that arrived; None at the end, ValueError for a line of another protocol."""
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            data = b''
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b'\n')
        try:
            messages = [json.loads(line) for line in lines]
        except RecursionError as error:
            raise ValueError from error
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError
        return messages

    def __str__(self) -> str:
        return f'process {self.process} ({self.host})'


def configured(link: Link) -> Link:
    """Sets the options of a connection, and returns it."""
    link.socket.settimeout(SENDING)
    link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A line is sent before the one before it is acknowledged, because it may be the last.
    link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link
