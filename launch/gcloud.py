"""Calls of gcloud: again where what went wrong passes, and out of reach of Ctrl-C.

Part of tpu.py; the standard library alone.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import NamedTuple

FAILED, WRONG, AGAIN = 1, 2, 42
# A rate limit passes by itself, a quota does not, and both call themselves a quota.
RATE = re.compile(r'rate.?limit|per minute|per 100 seconds', re.I)
FATAL = re.compile(r'PERMISSION_DENIED|quota|INVALID_ARGUMENT|SSH Key is not present', re.I)
PASSING = re.compile(
    r'UNAVAILABLE|timed out|DEADLINE_EXCEEDED|connection reset|internal error|\b429\b|\b50[0234]\b',
    re.I,
)


class Failure(Exception):
    """Ends the command with one line and an exit code."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Lost(Failure):
    """The slice is gone or out of reach: the same command on a new one goes on."""

    def __init__(self, message: str):
        super().__init__(AGAIN, message)


class Stopped(Exception):
    """A signal came."""


def say(text: str) -> None:
    # Straight to the descriptor: also called from a signal handler, also after a hang-up.
    with contextlib.suppress(OSError):
        os.write(2, f'tpu.py: {text}\n'.encode())


class Stop:
    """The first signal, noted; it takes effect only where this program waits, unless shielded."""

    def __init__(self):
        self.number, self.shield = 0, ''

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._note)

    def _note(self, number: int, frame) -> None:
        self.number = self.number or number
        say(self.shield or f'{signal.Signals(number).name}: stopping')

    def check(self) -> None:
        if self.number and not self.shield:
            raise Stopped


class Reply(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def missing(self) -> bool:
        return self.code != 0 and 'NOT_FOUND' in self.err

    @property
    def passing(self) -> bool:
        fatal = FATAL.search(self.err) or not PASSING.search(self.err)
        return self.code != 0 and bool(RATE.search(self.err) or not fatal)

    @property
    def reason(self) -> str:
        """The line of gcloud that tells most: the last error, else simply the last."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith('ERROR')]
        return (errors or lines or [f'gcloud ended with exit code {self.code}'])[-1]


@dataclass(frozen=True)
class Cloud:
    """Calls gcloud; or, in a dry run, prints the calls and assumes that all went well.

    where: the flags that every call gets. reach: those of ssh and scp too. poll: seconds between
    two looks.
    """

    where: tuple[str, ...]
    reach: tuple[str, ...]
    poll: float
    dry: bool
    stop: Stop

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.dry and (left := end - time.monotonic()) > 0:
            self.stop.check()
            time.sleep(min(left, 0.2))

    def together(
        self, calls, happy: str | None = 'ok', timeout=300.0, grace=0.0, capture=True
    ) -> list[Reply]:
        """Makes the calls at the same time, in sessions of their own, out of reach of Ctrl-C.

        Args:
          calls: the words of each call, after `gcloud compute tpus`.
          happy: what a dry run takes for the output; None: nothing of that name is there.
          timeout: seconds for all.
          grace: seconds a call may go on when a signal comes, before it is ended.
          capture: whether the output is wanted here.
        """
        argvs = [['gcloud', 'compute', 'tpus', *words, *self.where] for words in calls]
        if self.dry:
            for argv in argvs:
                print(json.dumps(argv), flush=True)
            return [Reply(0, happy, '') if happy else Reply(1, '', 'NOT_FOUND')] * len(argvs)
        pipe = subprocess.PIPE if capture else None
        options = dict(stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True)
        end = time.monotonic() + timeout
        processes: list[subprocess.Popen] = []
        try:
            self.stop.check()
            for argv in argvs:
                processes.append(subprocess.Popen(argv, text=True, errors='replace', **options))
            return [self._finish(process, end) for process in processes]
        finally:
            for process in processes:
                _end(process, grace)

    def _finish(self, process: subprocess.Popen, end: float) -> Reply:
        while True:
            try:
                out, err = process.communicate(timeout=0.2)
                return Reply(process.returncode, out or '', err or '')
            except subprocess.TimeoutExpired:
                self.stop.check()
                if time.monotonic() > end:
                    return Reply(124, '', f'{shlex.join(process.args[:6])} timed out')

    def call(self, *words: str, **options) -> Reply:
        """One call, again a few times if what went wrong passes. Options: as of `together`."""
        for attempt in range(5):
            reply = self.together([words], **options)[0]
            if reply.code == 0 or not reply.passing:
                return reply
            say(f'trying again: {reply.reason}')
            self.backoff(attempt)
        raise Failure(FAILED, f'gcloud keeps failing: {reply.reason}')

    def backoff(self, attempt: int) -> None:
        self.pause(self.poll * min(2**attempt, 8))


def _end(process: subprocess.Popen, grace: float) -> None:
    # SIGTERM lets gcloud end its ssh; what is deaf to it must not keep the slice from its deletion.
    for number, seconds in ((0, grace), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(seconds)
