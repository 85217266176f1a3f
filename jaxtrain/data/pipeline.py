"""batch = f(seed, step): training batches by global index, and padded evaluation batches.

The order of the data is a permutation per epoch, made from the seed alone. Position `i` of the
endless stream of epochs belongs to step `i // batch_size`; process `p` of `n` takes the `p`-th
share of each global batch. So the order depends neither on the number of processes nor on that of
devices, and resuming needs only the step. The random choices of a source, such as crops, are
determined by a number for each position, which is made from the seed alone too. Grain runs the
function ahead of time in threads or processes, which does not affect the batches.

Nothing here grows with the length of the run, and only the order of version 1 of the random streams
grows with the size of the data.
"""

import atexit
import contextlib
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from absl import flags

from jaxtrain.config import streams
from jaxtrain.data.images import quiet_pil
from jaxtrain.data.permutation import permutation
from jaxtrain.data.sources.source import Source
from jaxtrain.errors import UserError

if TYPE_CHECKING:
    import grain.python as grain

Batch = dict[str, np.ndarray]
_STOPS = (signal.SIGTERM, signal.SIGINT)


class Batches(Iterator[Batch], Protocol):
    """An iterator over batches that must be closed after use."""

    def close(self) -> Any: ...


@dataclass(frozen=True)
class Slice:
    """This process's share of each global batch: process `index` of `count`."""

    index: int = 0
    count: int = 1

    def of(self, batch: np.ndarray) -> np.ndarray:
        """Return this process's share of the last axis."""
        share = batch.shape[-1] // self.count
        return batch[..., self.index * share : (self.index + 1) * share]


@dataclass(frozen=True)
class Order:
    """Which examples of a step this process reads.

    Attributes:
      batch_size: examples in the global batch.
      seed: the seed of the permutations, and of the random numbers.
      part: this process's share.
      version: the version of the random streams (config/streams.py).
    """

    batch_size: int
    seed: int
    part: Slice = Slice()
    version: int = streams.VERSION

    @property
    def at_once(self) -> int:
        """The number of steps whose indices are computed together.

        NumPy takes about as long for the indices of a small batch as for a thousand.
        """
        return max(1, 4096 * self.part.count // self.batch_size)

    def positions(self, steps: range) -> np.ndarray:
        """Return the positions in the stream that this process reads, int64 [steps * share]."""
        stream = np.arange(steps.start * self.batch_size, steps.stop * self.batch_size)
        return self.part.of(stream.reshape(len(steps), self.batch_size)).ravel()


@dataclass(frozen=True)
class Reading:
    """How batches are read ahead of time.

    Attributes:
      threads: the number of host threads.
      ahead: the number of items to prepare in advance.
      workers: the number of processes to use in place of threads; 0 uses threads.
    """

    threads: int = 1
    ahead: int = 1
    workers: int = 0


def train_indices(examples: int, order: Order, steps: range) -> np.ndarray:
    """Return the indices of this process's examples in some steps, int64 [steps * share].

    Each epoch visits every example once; a batch may straddle two epochs.
    """
    several = order.at_once
    rows = [_indices(examples, order, step // several)[step % several] for step in steps]
    return np.concatenate(rows)


@lru_cache(maxsize=8)
def _indices(examples: int, order: Order, number: int) -> np.ndarray:
    """Return the indices of the `number`-th `at_once` steps, int64 [at_once, share]."""
    steps = range(number * order.at_once, (number + 1) * order.at_once)
    epochs, places = np.divmod(order.positions(steps), examples)
    indices = np.empty_like(places)
    for epoch in range(epochs[0], epochs[-1] + 1):
        inside = epochs == epoch
        indices[inside] = _permuted(places[inside], examples, order, epoch)
    return indices.reshape(order.at_once, -1)


def example_numbers(order: Order, steps: range) -> np.ndarray:
    """Return a random number for each of these examples, uint64 [steps * share].

    Each number is a function of the seed and of the position in the stream.
    """
    # Philox generates numbers in blocks of four, and can start at any block.
    block, offset = divmod(steps.start * order.batch_size, 4)
    count = len(steps) * order.batch_size
    numbers = np.random.Philox(key=order.seed, counter=block).random_raw(offset + count)[offset:]
    return order.part.of(numbers.reshape(len(steps), order.batch_size)).ravel()


def _permuted(places: np.ndarray, examples: int, order: Order, epoch: int) -> np.ndarray:
    seed = (order.seed, int(epoch))
    if order.version == streams.FIRST:
        return _whole_permutation(examples, seed)[places]
    return permutation(examples, seed)(places)


@lru_cache(maxsize=4)
def _whole_permutation(examples: int, seed: tuple[int, int]) -> np.ndarray:
    """Return the order of version 1."""
    return np.random.default_rng(seed).permutation(examples)


def train_batches(
    source: Source, bounds: Sequence[int] | np.ndarray, order: Order, reading: Reading = Reading()
) -> Batches:
    """Return this process's batches, arrays by name as `Source.features` declares them.

    Args:
      source: the training examples.
      bounds: ascending steps: item `i` has the steps from `bounds[i]` up to `bounds[i + 1]`. An
        item of several steps has a leading axis of steps.
      order: which examples each step has.
      reading: how they are read.

    Returns:
      An iterator whose `close()` ends its threads or processes. Each worker gets a copy of
      `source`.
    """
    import grain.python as grain

    def batch(item: int) -> Batch:
        steps = range(int(bounds[item]), int(bounds[item + 1]))
        numbers = example_numbers(order, steps) if source.random else None
        examples = source.fetch(train_indices(len(source), order, steps), numbers)
        if len(steps) == 1:
            return examples
        return {k: v.reshape(len(steps), -1, *v.shape[1:]) for k, v in examples.items()}

    dataset = grain.MapDataset.range(len(bounds) - 1).map(batch)
    if not reading.workers:
        return iter(dataset.to_iter_dataset(grain.ReadOptions(reading.threads, reading.ahead)))
    if not flags.FLAGS.is_parsed():  # Grain passes its flags on to the workers
        flags.FLAGS.mark_as_parsed()
    # JAX releases the last batch, whose memory is shared with a worker, in the next garbage
    # collection. Without one at exit, a warning about the shared memory would be printed.
    atexit.register(gc.collect)
    each = max(1, -(-reading.ahead // reading.workers))
    dataset = dataset.to_iter_dataset(grain.ReadOptions(1, 1))
    return _with_blocked_signals(
        dataset.mp_prefetch(grain.MultiprocessingOptions(reading.workers, each), _start_worker)
    )


def _with_blocked_signals(dataset: 'grain.IterDataset') -> Generator[Batch, None, None]:
    """Yield the items of a data set, and block stop signals while its workers start.

    A stop signal may be sent to all processes of a job, and only the training process should handle
    it. Grain starts a worker when its first item is requested, and a process inherits the signal
    mask of the thread that starts it; `_start_worker` would run a second too late to set it.
    """
    # Start the tracker now, because starting it with the first worker would reset the mask.
    resource_tracker.ensure_running()
    with contextlib.closing(iter(dataset)) as items:
        while True:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
            try:
                item = next(items, None)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if item is None:
                return
            yield item


def _start_worker(index: int, count: int) -> None:
    """Set up a worker process, so that it ends together with its parent."""
    del index, count
    quiet_pil()

    def follow() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None  # this is a worker
        parent.join()
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()


def eval_batches(source: Source, batch_size: int, part: Slice) -> Iterator[Batch]:
    """Yield this process's share of all examples in order; the last one pads the last batch."""
    for start in range(0, len(source), batch_size):
        indices = np.minimum(np.arange(start, start + batch_size), len(source) - 1)
        yield source.fetch(part.of(indices))


def check_batch_size(key: str, batch_size: int, devices: int, examples: int | None = None) -> None:
    """Raise UserError if the devices cannot share a batch, or it is larger than the data."""
    if batch_size < 1:
        raise UserError(f'config.{key}={batch_size} must be at least 1')
    if batch_size % devices:
        raise UserError(
            f'config.{key}={batch_size} is not divisible by the {devices} devices; '
            f'{max(devices, batch_size // devices * devices)} would be'
        )
    if examples is not None and batch_size > examples:
        raise UserError(
            f'config.{key}={batch_size} is larger than the training data ({examples} examples); '
            f'set it to {examples // devices * devices} or less'
        )
