"""Exact evaluation: every example counts once, for any batch size and number of devices.

The evaluation step returns one row per example. The last batch is padded to the compiled size, and
the rows of the padding are dropped. Rows are collected on the host in the order of the data; the
task computes its metrics from them.
"""

from collections import deque
from collections.abc import Callable

import jax
import numpy as np

from jaxtrain.data.pipeline import Batch, Slice, eval_batches
from jaxtrain.data.sources.source import Source

# Batches whose results are not yet on the host: this keeps devices busy and bounds memory.
IN_FLIGHT = 4


def per_example(
    rows: Callable[[Batch], dict[str, jax.Array]],
    source: Source,
    batch_size: int,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, np.ndarray] | None:
    """The rows of all examples of a source, in its order.

    Args:
      rows: this process's share of a batch -> the rows of the whole batch, replicated.
      source: the examples.
      batch_size: number of examples in the global batch.
      stopped: called before each batch; True ends the evaluation.

    Returns:
      Arrays [examples, ...] by name; None if the evaluation was stopped.
    """
    part = Slice(jax.process_index(), jax.process_count())
    pending: deque = deque()
    done: list[dict[str, np.ndarray]] = []
    for batch in eval_batches(source, batch_size, part):
        if stopped():
            return None
        pending.append(rows(batch))
        if len(pending) > IN_FLIGHT:
            done.append(jax.device_get(pending.popleft()))
    done.extend(jax.device_get(values) for values in pending)
    return {name: np.concatenate([d[name] for d in done])[: len(source)] for name in done[0]}
