"""batch = f(seed, step): training batches by global index, and evaluation batches with a mask.

The order of the data is a permutation per epoch, made from the seed alone. Position `i` of the
endless stream of epochs belongs to step `i // batch_size`; process `p` of `n` takes the `p`-th
share of each global batch. So the order depends neither on the number of processes nor of devices,
and resuming needs the step alone. Grain runs the function ahead of time in threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import grain.python as grain
import numpy as np

from jaxtrain.data.sources import Source
from jaxtrain.errors import UserError

Batch = dict[str, np.ndarray]


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


@lru_cache(maxsize=4)
def _permutation(examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(examples)


def train_batches(
    source: Source,
    batch_size: int,
    seed: int,
    bounds: Sequence[int],
    part: Slice,
    threads: int,
    ahead: int,
) -> Iterator[Batch]:
    """This process's batches, arrays by name as `Source.features` tells.

    Args:
      source: the training examples.
      batch_size: examples in the global batch.
      seed: the seed of the order.
      bounds: the steps, in order: item `i` is for those from `bounds[i]` to `bounds[i + 1]`. One of
        several steps has an axis of steps in front.
      part: this process's share.
      threads, ahead: host threads, and how many items to keep ready.
    """

    def batch(item: int) -> Batch:
        steps = range(int(bounds[item]), int(bounds[item + 1]))
        rows = [part.of(train_indices(len(source), batch_size, seed, step)) for step in steps]
        examples = source.fetch(np.concatenate(rows))
        if len(steps) == 1:
            return examples
        return {k: v.reshape(len(steps), -1, *v.shape[1:]) for k, v in examples.items()}

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    dataset = grain.MapDataset.range(len(bounds) - 1).map(batch)
    return iter(dataset.to_iter_dataset(options))


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
