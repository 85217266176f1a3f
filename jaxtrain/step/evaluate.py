"""Exact evaluation: every example counted once, whatever the batch size or number of devices.

The evaluation step returns one row per example. The last batch is padded to the compiled size and
the padding is cut off again; the rows are kept on the host in the data's order, where the task
computes its metrics from them.
"""

from collections import deque
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from jaxtrain.data.pipeline import Slice, eval_batches
from jaxtrain.data.sources.source import Source
from jaxtrain.parallel.mesh import put_batch
from jaxtrain.step.state import TrainState

# Results on their way to the host: enough to keep the devices busy, few enough to bound memory.
IN_FLIGHT = 4


def per_example(
    eval_step: Callable,
    state: TrainState,
    source: Source,
    batch_size: int,
    mesh: Mesh,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, np.ndarray] | None:
    """The rows of every example of a source, arrays [examples, ...] by name, in the source's order.

    Args:
      eval_step: a compiled `(state, batch) -> rows of the batch`, replicated.
      state: what to evaluate.
      source: the examples.
      batch_size: examples in the global batch.
      mesh: the devices.
      stopped: asked before each batch whether to give up.

    Returns:
      The rows; None if it gave up.
    """
    part = Slice(jax.process_index(), jax.process_count())
    pending: deque = deque()
    done: list[dict[str, np.ndarray]] = []
    for batch in eval_batches(source, batch_size, part):
        if stopped():
            return None
        pending.append(eval_step(state, put_batch(batch, mesh)))
        if len(pending) > IN_FLIGHT:
            done.append(jax.device_get(pending.popleft()))
    done.extend(jax.device_get(values) for values in pending)
    return {name: np.concatenate([d[name] for d in done])[: len(source)] for name in done[0]}
