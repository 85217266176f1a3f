"""A TCP connection between two processes of a run, over which JSON lines go."""

import contextlib
import json
import socket
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
    """

    socket: socket.socket
    process: int
    host: str = ''
    at: tuple[str, int, float] = ('init', 0, 0.0)
    heard: float = field(default_factory=time.monotonic)
    left: int | None = None
    _rest: bytes = b''

    def send(self, **message: Any) -> None:
        """Sends a line; that the other end is gone is for `receive` to tell."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b'\n')

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
    return link
