"""Calls of gcloud, which are retried after temporary errors and not interrupted by Ctrl-C.

Part of tpu.py; uses only the standard library.
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
# Exceeding a rate limit is temporary, exceeding a quota is not; gcloud calls both a quota.
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
    """The slice is gone or unreachable: the same command on a new slice resumes the run."""

    def __init__(self, message: str):
        super().__init__(AGAIN, message)


class Stopped(Exception):
    """A signal was received."""


def say(text: str) -> None:
    # Written to the descriptor, so that it works in a signal handler and after a hang-up.
    with contextlib.suppress(OSError):
        os.write(2, f'tpu.py: {text}\n'.encode())


class Stop:
    """The first signal; it takes effect only where this program waits, and not while shielded."""

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
        """The most useful line of gcloud: the last error, else the last line."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith('ERROR')]
        return (errors or lines or [f'gcloud ended with exit code {self.code}'])[-1]


@dataclass(frozen=True)
class Cloud:
    """Calls gcloud; a dry run prints the calls instead and assumes that they succeed.

    Attributes:
      where: flags for every call.
      reach: further flags for ssh and scp.
      poll: seconds between two queries.
      dry: whether this is a dry run.
      stop: the signal received, if any.
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
        self, calls, assumed: str | None = 'ok', timeout=300.0, grace=0.0, capture=True
    ) -> list[Reply]:
        """Makes the calls at the same time, in sessions of their own, which Ctrl-C does not reach.

        Args:
          calls: the arguments of each call, after `gcloud compute tpus`.
          assumed: the output that a dry run assumes; None: the resource does not exist.
          timeout: seconds for all calls together.
          grace: seconds that a call may continue after a signal, before it is ended.
          capture: whether to capture the output instead of printing it.
        """
        argvs = [['gcloud', 'compute', 'tpus', *words, *self.where] for words in calls]
        if self.dry:
            for argv in argvs:
                print(json.dumps(argv), flush=True)
            return [Reply(0, assumed, '') if assumed else Reply(1, '', 'NOT_FOUND')] * len(argvs)
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
        """Makes one call, and retries it after temporary errors. Options: see `together`."""
        for attempt in range(5):
            reply = self.together([words], **options)[0]
            if reply.code == 0 or not reply.passing:
                return reply
            say(f'retrying: {reply.reason}')
            self.backoff(attempt)
        raise Failure(FAILED, f'gcloud keeps failing: {reply.reason}')

    def backoff(self, attempt: int) -> None:
        self.pause(self.poll * min(2**attempt, 8))


def _end(process: subprocess.Popen, grace: float) -> None:
    # SIGTERM lets gcloud end its ssh; a call that ignores it must not delay deleting the slice.
    for number, seconds in ((0, grace), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(seconds)
