"""What Orbax needs of the process in which it runs: an event loop that closes late, and silence."""

import asyncio
import logging
import warnings

# Seconds to wait for the reads or writes that are under way when one has failed.
UNDER_WAY = 60.0


def tame_orbax() -> None:
    """Prepares this process for reading and writing checkpoints; to be called when a command
    starts, and more often does no harm.
    """
    # Orbax logs each error with its traceback before it raises it; here it is told in a line. And
    # what it has not begun by then, it leaves.
    warnings.filterwarnings('ignore', r"coroutine '.*Handler.*' was never awaited", RuntimeWarning)
    logging.getLogger('absl').addFilter(_not_from_orbax)
    asyncio.set_event_loop_policy(_Policy())


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return 'orbax' not in record.pathname


class _Loop(asyncio.SelectorEventLoop):
    """Waits for what is under way before it closes.

    Orbax closes its loops at the first error. What ends at that time or later would print a
    traceback for each array, and writes would go on in a folder that is being removed.
    """

    def close(self) -> None:
        # A loop that is dropped while another one runs cannot be run any more.
        if not (self.is_closed() or self.is_running() or asyncio._get_running_loop()):
            self.run_until_complete(_rest(asyncio.all_tasks(self)))
        super().close()


async def _rest(left: set[asyncio.Task]) -> None:
    await asyncio.sleep(0)  # those that have ended just now tell it to whoever gathers them
    if left:
        done, _ = await asyncio.wait(left, timeout=UNDER_WAY)
        _ = [task.cancelled() or task.exception() for task in done]  # they are known


class _Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = _Loop
