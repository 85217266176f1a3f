"""Watches the connected processes of a run (meet.py), and ends all when one is gone or hangs.

Every few seconds, each process sends process 0 a line with what it is doing, and process 0 sends
such a line to each of them. When a process ends without a message its connection closes; process 0
detects this at once and tells the others. JAX by itself would leave them in a collective that
cannot end, and abort them after 100 seconds.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxtrain.errors import Preempted, exit_code, one_line
from jaxtrain.pod.link import Link
from jaxtrain.pod.place import Place

# Seconds between the lines of a process, and seconds of silence after which it counts as lost. A
# process that is killed is detected at once; the limit on silence is for machines that vanish.
BEAT, SILENCE = 5.0, 60.0
# Seconds for a process to end by itself after another has announced its end, and for the actions
# before an end, which may hang as well.
GRACE = 5.0
# Seconds for the last line of a process to reach the other machines.
LAST = 1.0


class Peers(contextlib.AbstractContextManager):
    """The other processes of a run, watched by a thread while the context is open.

    Leaving the context tells them how this process ended; after an error, they end as well.

    Args:
      place: the place of this process.
      links: on process 0, the links to all others; on the others, the link to process 0.
    """

    def __init__(self, place: Place, links: list[Link]):
        self.place, self._links = place, links
        # What this process is doing, what it does before it ends because of another process, and
        # what it does when a process hangs.
        self.position: Callable[[], tuple[str, int, float]] = lambda: ('init', 0, 0.0)
        self.on_end: Callable[[str, int], None] = lambda why, code: None
        self.dump: Callable[[], None] = lambda: None
        self._left: int | None = None
        self._judged = False
        self._ending = threading.RLock()
        self._thread = threading.Thread(target=self._watch, name='peers', daemon=True)

    def __enter__(self) -> 'Peers':
        if self._links:
            _on_abort(self._abort)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_) -> None:
        if not self._links:
            return
        self.judge(error)
        sys.stdout.flush()
        self._left = code = exit_code(error)
        self._send_last(bye=code, why=one_line(error))

    def judge(self, error: BaseException | None) -> None:
        """Waits if an error may mean that a peer is gone: `_watch` then ends this process."""
        if self._links and exit_code(error) == 1 and not self._judged:
            self._judged = True
            time.sleep(GRACE)

    def hang(self, why: str) -> None:
        """Ends the run on all processes, with exit code 42, because this one hangs."""
        if self.place.process:
            self._send(hang=why, at=self.position())
            time.sleep(GRACE)  # process 0 knows which process is behind, and tells all
            why = f'{why}; {self._links[0]} does not answer'
        elif self._links:
            why = self._verdict(why)
        self._end_all(why, hung=True)

    def _verdict(self, why: str) -> str:
        """Appends which processes are behind: the silent ones, else by step, else by phase."""
        now, doing = time.monotonic(), [(str(self.place.process), *self.position())]
        silent = {str(link.process) for link in self._links if now - link.heard > 2 * BEAT}
        for link in self._links:
            phase, step, seconds = link.at
            doing.append((str(link.process), phase, step, seconds + now - link.heard))
        last, phases = min(step for _, _, step, _ in doing), [phase for _, phase, _, _ in doing]
        behind = [d for d in doing if d[0] in silent] or [d for d in doing if d[2] == last]
        if len(behind) == len(doing):
            common = max(set(phases), key=phases.count)
            behind = [d for d in doing if d[1] != common]
        positions = ', '.join(
            f'process {number} in {phase} at step {step} for {seconds:.0f} s'
            for number, phase, step, seconds in behind
        )
        return f'{why}; {f"behind: {positions}" if behind else "no process is behind the others"}'

    def _send(self, **message: Any) -> None:
        for link in self._links:
            link.send(**message)

    def _send_last(self, **message: Any) -> None:
        """Sends a line just before the process ends, and waits until it has arrived."""
        self._send(**message)
        deadline = time.monotonic() + LAST
        for link in self._links:
            link.flush(deadline - time.monotonic())

    def _watch(self) -> None:
        with selectors.DefaultSelector() as ready:
            for link in self._links:
                ready.register(link.socket, selectors.EVENT_READ, link)
                for message in link.early:
                    self._handle(link, message)
            last_beat = 0.0
            while ready.get_map():
                for key, _ in ready.select(min(1.0, BEAT)):
                    link = key.data
                    messages = link.receive()
                    if messages is None:
                        ready.unregister(link.socket)
                        self._closed(link)
                    for message in messages or []:
                        self._handle(link, message)
                now = time.monotonic()
                if now - last_beat > BEAT:
                    last_beat = now
                    self._send(at=self.position())
                for link in self._links:
                    if link.left is None and now - link.heard > SILENCE:
                        self._end_all(f'{link} has sent nothing for {SILENCE:.0f} s')

    def _closed(self, link: Link) -> None:
        if (code := self._left) is not None:
            # This process is exiting, and JAX would wait long for a process that is gone.
            _later(GRACE, lambda: os._exit(code))
        elif link.left is None:
            self._end_all(f'{link} is gone')

    def _handle(self, link: Link, message: dict[str, Any]) -> None:
        if 'at' in message:
            link.at = tuple(message['at'])
        if 'hang' in message:
            self._end_all(self._verdict(f'{link}: {message["hang"]}'), hung=True)
        if 'end' in message:
            self._end(message['end'], message['code'], message['hung'])
        if 'bye' in message:
            link.left = message['bye']
            if link.left not in (0, Preempted.exit_code):
                why = f'{link} ended with an error: {message["why"]}'
                _later(GRACE, lambda: self._end_all(why, message['bye']))

    def _abort(self) -> None:
        """Runs before an abort of this process, on the thread that aborts."""
        if self._left is not None:
            os._exit(self._left)
        time.sleep(GRACE)  # if the cause is that a peer is gone, `_watch` ends the process now

    def _end_all(self, why: str, code: int = Preempted.exit_code, hung: bool = False) -> None:
        with self._ending:
            self._send_last(end=why, code=code, hung=hung)
            self._end(why, code, hung)

    def _end(self, why: str, code: int, hung: bool = False) -> None:
        """Ends this process because of another one, whatever its main thread waits for."""
        if self._left is not None:
            os._exit(self._left)
        with self._ending:  # never released: only the first reason is reported
            if hung:
                within(GRACE, self.dump)
            again = '; start the same command again to go on' if code == 42 else ''
            print(f'jaxtrain: {why}{again}', file=sys.stderr, flush=True)
            within(GRACE, lambda: self.on_end(why, code))
            os._exit(code)


def within(seconds: float, act: Callable[[], None]) -> None:
    """Calls `act`, which may hang or fail, and waits for it for at most `seconds`."""

    def run() -> None:
        with contextlib.suppress(Exception):
            act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)


def _later(seconds: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def _on_abort(wait: Callable[[], None]) -> None:
    """Calls `wait` when the process is about to abort, on any thread.

    JAX's client aborts the process as soon as the coordinator's process is gone, a little before
    `_watch` can detect this and end the process with the right exit code. Python's own signal
    handlers run on the main thread, which then waits in a collective, so this handler is in C.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: wait())
    _handlers.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


_handlers: list[Any] = []  # kept until the process ends
