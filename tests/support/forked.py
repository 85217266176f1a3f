"""Python processes that have imported the program already.

Importing JAX and the libraries around it takes two seconds of CPU, more than most processes that
tests start take for the rest. So one process of each pytest worker imports them, and those that
tests start are forked from it. It has a single thread and has touched no device: a process that is
forked from it reads the environment that it is given, as a fresh one would.

What a fresh process has and these have not: its own hash seed, its own imports (all modules of a
training run are there from the start), and the environment variables that are read while JAX or
Python starts. A test that is about those starts a process by `subprocess`.
"""

import functools
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What is read while JAX or Python is imported: the same for all processes.
_EARLY = ('JAX_', 'PYTHON')
_ENVIRONMENT = dict(os.environ)


class Process:
    """A running process, as `subprocess.Popen` has it; what it prints goes to files.

    Attributes:
      pid: its process ID.
      returncode: None while it runs; a negative signal number if one ended it.
    """

    def __init__(self, words: list[str], env: dict[str, str], stderr: int | None = None):
        """Starts it.

        Args:
          words: as on the command line of Python: ['-m', module, ...] or ['-c', code, ...].
          env: its whole environment.
          stderr: `subprocess.STDOUT` to have both in one file.
        """
        assert _early(env) == _early(_ENVIRONMENT), 'read too early: use subprocess'
        self.args, self.returncode = words, None
        self._out = self._err = tempfile.TemporaryFile('w+')  # noqa: SIM115
        if stderr != subprocess.STDOUT:
            self._err = tempfile.TemporaryFile('w+')  # noqa: SIM115
        self._keeper, theirs = socket.socketpair()
        files = [file.fileno() for file in (theirs, self._out, self._err)]
        with theirs:
            socket.send_fds(_server()[0], [b'x'], files)
        self._keeper.sendall(json.dumps([words, env]).encode() + b'\n')
        self.pid = self._answer()

    def _answer(self) -> int:
        data = self._keeper.recv(8, socket.MSG_WAITALL)
        assert data, f'the process that keeps {self.args} is gone'
        return int.from_bytes(data, 'little', signed=True)

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._keeper.settimeout(timeout)
            try:
                self.returncode = self._answer()
            except (BlockingIOError, TimeoutError) as error:
                raise subprocess.TimeoutExpired(self.args, timeout) from error
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """What it has printed, once it has ended."""
        self.wait(timeout)
        for file in (self._out, self._err):
            file.seek(0)
        out = self._out.read()
        return out, None if self._err is self._out else self._err.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _early(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_EARLY)}


@functools.cache
def _server() -> tuple[socket.socket, subprocess.Popen]:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, '-m', 'tests.support.forked', str(theirs.fileno())]
        process = subprocess.Popen(
            command, env=_ENVIRONMENT, cwd=ROOT, pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return ours, process


def stop() -> None:
    """Ends the process that others are forked from, if there is one."""
    if _server.cache_info().currsize:
        ours, process = _server()
        ours.close()
        process.wait(60)
        _server.cache_clear()


# In that process.


def _serve(control: socket.socket) -> list[str]:
    """Returns in each of the forked processes, with its words."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        _, files, _, _ = socket.recv_fds(control, 1, 3)
        if not files:  # pytest has ended, or has closed its end
            time.sleep(0.05)  # for keepers that are about to end, whose CPU seconds count
            _reap()
            os._exit(0)
        if not os.fork():
            control.close()
            words = _keep(*files)
            signal.signal(signal.SIGINT, interrupt)
            return words
        for file in files:
            os.close(file)
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _keep(connection: int, out: int, err: int) -> list[str]:
    """Forks once more, and tells pytest how that process, in which this returns, has ended."""
    pytest = socket.socket(fileno=connection)
    with pytest.makefile('rb') as lines:
        words, env = json.loads(lines.readline())
    if pid := os.fork():
        pytest.sendall(pid.to_bytes(8, 'little', signed=True))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        pytest.sendall(code.to_bytes(8, 'little', signed=True))
        os._exit(0)
    pytest.close()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    os.environ.clear()
    os.environ.update(env)
    return words


def _run(how: str, what: str, *words: str) -> None:
    """As `python HOW WHAT ...`."""
    sys.argv = [how, *words]
    if how == '-m':
        runpy.run_module(what, run_name='__main__', alter_sys=True)
    else:
        module = sys.modules['__main__'] = types.ModuleType('__main__')
        exec(compile(what, '<string>', 'exec'), module.__dict__)


def by_default() -> None:
    """Restores what pytest's process ignores once it has used JAX's profiler or libtpu.

    A process that ignores a signal has its children ignore it as well.
    """
    for number in (signal.SIGHUP, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)


def _main(control: socket.socket) -> None:
    by_default()
    import grain.python  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import tensorboardX.event_file_writer  # noqa: F401

    import jaxtrain.checkpoints.manager
    import jaxtrain.cli
    import jaxtrain.data.datasets.prepare
    import jaxtrain.inference.predict
    import jaxtrain.loop.train  # noqa: F401

    gc.collect()
    gc.freeze()  # so that memory which is shared stays so
    tasks = Path('/proc/self/task')
    assert not tasks.exists() or len([*tasks.iterdir()]) == 1, 'a thread would be lost in a fork'
    _run(*_serve(control))


if __name__ == '__main__':
    _main(socket.socket(fileno=int(sys.argv[1])))
