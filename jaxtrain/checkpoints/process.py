"""Prepare a process for Orbax: event loops that wait before they close, and fewer log messages."""

import asyncio
import logging
import warnings

# Seconds to wait for pending reads or writes when one has failed.
PENDING = 60.0


def tame_orbax() -> None:
    """Prepare this process for reading and writing checkpoints.

    Every command calls this when it starts. Further calls have no effect.
    """
    # Orbax logs each error with its traceback before it raises it, but the command line reports it
    # in one line. Orbax also leaves coroutines that it has not started by then.
    warnings.filterwarnings('ignore', r"coroutine '.*Handler.*' was never awaited", RuntimeWarning)
    logging.getLogger('absl').addFilter(_not_from_orbax)
    asyncio.set_event_loop_policy(_Policy())


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return 'orbax' not in record.pathname


class _Loop(asyncio.SelectorEventLoop):
    """Event loop that waits for pending tasks before it closes.

    Orbax closes its loops at the first error. Tasks that fail then or later would each print a
    traceback, and writes would continue in a folder that is being removed.
    """

    def close(self) -> None:
        # A loop that is closed while another one runs cannot be run any more.
        if not (self.is_closed() or self.is_running() or asyncio._get_running_loop()):
            self.run_until_complete(_finish(asyncio.all_tasks(self)))
        super().close()


async def _finish(tasks: set[asyncio.Task]) -> None:
    await asyncio.sleep(0)  # lets tasks that have just ended notify those that await them
    if tasks:
        done, _ = await asyncio.wait(tasks, timeout=PENDING)
        _ = [task.cancelled() or task.exception() for task in done]  # marks errors as retrieved


class _Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = _Loop
