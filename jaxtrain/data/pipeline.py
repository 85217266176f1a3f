"""batch = f(seed, step): training batches by global index, and evaluation batches with a mask.

The order of the data is a permutation per epoch, made from the seed alone. Position `i` of the
endless stream of epochs belongs to step `i // batch_size`; process `p` of `n` takes the `p`-th
share of each global batch. So the order depends neither on the number of processes nor of devices,
and resuming needs the step alone. What a source chooses at random, such as a crop, goes by a number
for each position, made from the seed alone too. Grain runs the function ahead of time, in threads
or in processes, which does not show in the batches.
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

from jaxtrain.data.images import quiet_pil
from jaxtrain.data.sources.source import Source
from jaxtrain.errors import UserError

if TYPE_CHECKING:
    import grain.python as grain

Batch = dict[str, np.ndarray]
_STOPS = (signal.SIGTERM, signal.SIGINT)


class Batches(Iterator[Batch], Protocol):
    """Batches that are closed when no more are wanted."""

    def close(self) -> Any: ...


@dataclass(frozen=True)
class Slice:
    """This process's share of each global batch: process `index` of `count`."""

    index: int = 0
    count: int = 1

    def of(self, batch: np.ndarray) -> np.ndarray:
        share = len(batch) // self.count
        return batch[self.index * share : (self.index + 1) * share]


def train_indices(examples: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The examples of a step's global batch, int64 [batch_size].

    Each epoch visits every example once; a batch may straddle two epochs.
    """
    stream = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(stream, examples)
    parts = [
        _permutation(examples, seed, int(epoch))[places[epochs == epoch]]
        for epoch in np.unique(epochs)
    ]
    return np.concatenate(parts)


def example_numbers(batch_size: int, seed: int, step: int) -> np.ndarray:
    """A random number for each example of a step's global batch, uint64 [batch_size].

    It is a function of the seed and of the position in the stream.
    """
    # Philox counts in blocks of four numbers, and can start at any.
    block, offset = divmod(step * batch_size, 4)
    numbers = np.random.Philox(key=seed, counter=block).random_raw(offset + batch_size)
    return numbers[offset:]


@lru_cache(maxsize=4)
def _permutation(examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(examples)


def train_batches(
    source: Source,
    batch_size: int,
    seed: int,
    bounds: Sequence[int] | np.ndarray,
    part: Slice,
    threads: int,
    ahead: int,
    workers: int = 0,
) -> Batches:
    """This process's batches, arrays by name as `Source.features` declares them.

    Args:
      source: the training examples.
      batch_size: examples in the global batch.
      seed: the seed of the order.
      bounds: the steps, in order: item `i` is for those from `bounds[i]` to `bounds[i + 1]`. One of
        several steps has an axis of steps in front.
      part: this process's share.
      threads, ahead: host threads, and how many items to keep ready.
      workers: processes in place of the threads, 0 for none.

    Returns:
      An iterator, whose `close()` ends its threads or processes. With workers, `source` is copied
      to each.
    """
    import grain.python as grain

    def batch(item: int) -> Batch:
        steps = range(int(bounds[item]), int(bounds[item + 1]))
        rows = [part.of(train_indices(len(source), batch_size, seed, step)) for step in steps]
        numbers = [part.of(example_numbers(batch_size, seed, step)) for step in steps]
        examples = source.fetch(np.concatenate(rows), np.concatenate(numbers))
        if len(steps) == 1:
            return examples
        return {k: v.reshape(len(steps), -1, *v.shape[1:]) for k, v in examples.items()}

    dataset = grain.MapDataset.range(len(bounds) - 1).map(batch)
    if not workers:
        return iter(dataset.to_iter_dataset(grain.ReadOptions(threads, ahead)))
    if not flags.FLAGS.is_parsed():  # Grain hands its own flags on to the workers
        flags.FLAGS.mark_as_parsed()
    # JAX lets go of the last batch, in memory shared with a worker, when garbage is next collected;
    # at exit it would not be, and there would be a warning.
    atexit.register(gc.collect)
    each = max(1, -(-ahead // workers))
    dataset = dataset.to_iter_dataset(grain.ReadOptions(1, 1))
    return _shielded(
        dataset.mp_prefetch(grain.MultiprocessingOptions(workers, each), _start_worker)
    )


def _shielded(dataset: 'grain.IterDataset') -> Generator[Batch, None, None]:
    """Its items, from processes that no request to stop can end while they start.

    Such a request may reach all processes of a job, and the one that trains answers it. Grain
    starts a worker when its first item is due, and a process has the signal mask of the thread
    that starts it; `_start_worker` comes a second too late.
    """
    resource_tracker.ensure_running()  # which would lift the mask when the first worker starts
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
    """Makes a worker end with the process that it works for."""
    del index, count
    quiet_pil()

    def follow() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None  # this is a worker
        parent.join()
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()


def eval_batches(source: Source, batch_size: int, part: Slice) -> Iterator[Batch]:
    """This process's share of every example in order, the last batch padded by repeating one."""
    for start in range(0, len(source), batch_size):
        indices = np.minimum(np.arange(start, start + batch_size), len(source) - 1)
        yield source.fetch(part.of(indices))


def check_batch_size(key: str, batch_size: int, devices: int, examples: int | None = None) -> None:
    """UserError if a batch cannot be shared by the devices, or is larger than the data."""
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
