"""The processes of a run, once they have met (meet.py), notice who is gone or does not get on.

Each process sends process 0 a line every few seconds with what it is doing, and process 0 answers
in kind. When a process ends without a word its connection closes, which process 0 knows at once and
tells the others. JAX by itself would leave them in a collective that cannot end, and abort them
after 100 seconds.
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

# Seconds between the lines of a process, and of silence after which it counts as lost. A process
# that is killed is noticed at once; silence is for machines that vanish.
BEAT, SILENCE = 5.0, 60.0
# Seconds for a process to end by itself, once another has said why it ends; and for what is done
# before an end, which may hang as well.
GRACE = 5.0
# Seconds for the last line of a process to reach the others' machines.
LAST = 1.0


class Peers(contextlib.AbstractContextManager):
    """The other processes of a run, watched by a thread while the context is open.

    Leaving the context tells them how this process ended: those that go on without it end as well.

    Args:
      place: of this process.
      links: to the others, on process 0; to process 0, on the others.
    """

    def __init__(self, place: Place, links: list[Link]):
        self.place, self._links = place, links
        # What this process is doing; what to do before it ends for another's sake, and when one
        # hangs.
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
        self._tell_last(bye=code, why=one_line(error))

    def judge(self, error: BaseException | None) -> None:
        """Waits where an error may be that a peer is gone: then `_watch` ends the process now."""
        if self._links and exit_code(error) == 1 and not self._judged:
            self._judged = True
            time.sleep(GRACE)

    def hang(self, why: str) -> None:
        """Ends the run on all processes, with exit code 42, because this one does not get on."""
        if self.place.process:
            self._tell(hang=why, at=self.position())
            time.sleep(GRACE)  # process 0 knows who lags, and says it to all
            why = f'{why}; {self._links[0]} does not answer'
        elif self._links:
            why = self._verdict(why)
        self._end_all(why, hung=True)

    def _verdict(self, why: str) -> str:
        """Why, and who is behind: silent, else in steps, else by doing something else than most."""
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
        said = ', '.join(
            f'process {number} in {phase} at step {step} for {seconds:.0f} s'
            for number, phase, step, seconds in behind
        )
        return f'{why}; {f"behind: {said}" if behind else "no process is behind the others"}'

    def _tell(self, **message: Any) -> None:
        for link in self._links:
            link.send(**message)

    def _tell_last(self, **message: Any) -> None:
        """As the process is about to end."""
        self._tell(**message)
        deadline = time.monotonic() + LAST
        for link in self._links:
            link.flush(deadline - time.monotonic())

    def _watch(self) -> None:
        with selectors.DefaultSelector() as ready:
            for link in self._links:
                ready.register(link.socket, selectors.EVENT_READ, link)
                for message in link.early:
                    self._hear(link, message)
            said = 0.0
            while ready.get_map():
                for key, _ in ready.select(min(1.0, BEAT)):
                    link = key.data
                    messages = link.receive()
                    if messages is None:
                        ready.unregister(link.socket)
                        self._closed(link)
                    for message in messages or []:
                        self._hear(link, message)
                now = time.monotonic()
                if now - said > BEAT:
                    said = now
                    self._tell(at=self.position())
                for link in self._links:
                    if link.left is None and now - link.heard > SILENCE:
                        self._end_all(f'{link} has said nothing for {SILENCE:.0f} s')

    def _closed(self, link: Link) -> None:
        if (code := self._left) is not None:
            # This process is on its way out, and JAX would wait long for one that is gone.
            _later(GRACE, lambda: os._exit(code))
        elif link.left is None:
            self._end_all(f'{link} is gone')

    def _hear(self, link: Link, message: dict[str, Any]) -> None:
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
        """What comes before an abort of this process, on the thread that aborts."""
        if self._left is not None:
            os._exit(self._left)
        time.sleep(GRACE)  # if it is because a peer is gone, `_watch` ends the process now

    def _end_all(self, why: str, code: int = Preempted.exit_code, hung: bool = False) -> None:
        with self._ending:
            self._tell_last(end=why, code=code, hung=hung)
            self._end(why, code, hung)

    def _end(self, why: str, code: int, hung: bool = False) -> None:
        """Ends this process for another's sake, whatever its main thread waits for."""
        if self._left is not None:
            os._exit(self._left)
        with self._ending:  # never released: one reason is enough
            if hung:
                within(GRACE, self.dump)
            again = '; start the same command again to go on' if code == 42 else ''
            print(f'jaxtrain: {why}{again}', file=sys.stderr, flush=True)
            within(GRACE, lambda: self.on_end(why, code))
            os._exit(code)


def within(seconds: float, act: Callable[[], None]) -> None:
    """Waits no longer than that for what may hang, or fail, and must not keep the caller."""

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

    JAX's client aborts the process the moment the coordinator's process is gone, a little before
    `_watch` can know of it and end the process with the right exit code. Python's own signal
    handlers run on the main thread, which waits in a collective then; hence a handler in C.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: wait())
    _handlers.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


_handlers: list[Any] = []  # they must live as long as the process
