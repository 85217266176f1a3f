"""A TCP connection between two processes of a run, over which JSON lines go."""

import contextlib
import fcntl
import json
import socket
import sys
import termios
import time
from dataclasses import dataclass, field
from typing import Any

# Seconds to send a line in, to one that may not read any more.
SENDING = 10.0


@dataclass
class Link:
    """A connection, and what is known of the process at its other end.

    Attributes:
      at: (phase, step, seconds in that phase), as it last said.
      heard: when it last said anything, by time.monotonic.
      left: the exit code that it took its leave with.
      early: lines that came with the first, and that nobody has looked at yet.
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
        """Sends a line; that the other end is gone is for `receive` to tell."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b'\n')

    def flush(self, seconds: float) -> None:
        """Waits no longer than that till what was sent has arrived.

        Where a process ends before it has read all that came, its connection is reset, and what
        has not arrived by then is lost.
        """
        deadline = time.monotonic() + seconds
        while self._on_its_way() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _on_its_way(self) -> int:
        """Bytes that the machine of the other end has not acknowledged."""
        try:
            self.socket.getpeername()  # what one that is gone never acknowledges stays counted
            count = fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(count, sys.byteorder)

    def receive(self) -> list[dict[str, Any]] | None:
        """The lines that came; None at the end. ValueError for what is no line of ours."""
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


def settled(link: Link) -> Link:
    """The connection as it is used once its other end is known."""
    link.socket.settimeout(SENDING)
    link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A line does not wait for the one before it to be acknowledged: it may be the last.
    link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link
