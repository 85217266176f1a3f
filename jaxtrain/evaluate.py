"""Exact evaluation: every example counted once, whatever the batch size or number of devices.

The evaluation step returns one value per example. The last batch is padded to the compiled size and
the padding is cut off again; means are taken on the host in float64 and in the data's order.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxtrain import checkpoint, restore
from jaxtrain.config import Config
from jaxtrain.data.pipeline import Slice, check_batch_size, eval_batches
from jaxtrain.data.sources import Source, open_source
from jaxtrain.mesh import abstract_batch, compile_step, make_mesh, on_mesh, put_batch
from jaxtrain.models import make_model
from jaxtrain.partition import make_partition
from jaxtrain.run import read_config
from jaxtrain.state import TrainState, abstract_variables
from jaxtrain.step import make_eval_step
from jaxtrain.tasks import make_task

# Results on their way to the host: enough to keep the devices busy, few enough to bound memory.
IN_FLIGHT = 4


def per_example(
    eval_step: Callable, state: TrainState, source: Source, batch_size: int, mesh: Mesh
) -> dict[str, np.ndarray]:
    """Metrics of every example of a source, float32 [examples] by name, in the source's order.

    Args:
      eval_step: a compiled `(state, batch) -> metrics per example`, replicated.
      state: what to evaluate.
      source: the examples.
      batch_size: examples in the global batch.
      mesh: the devices.
    """
    part = Slice(jax.process_index(), jax.process_count())
    pending: deque = deque()
    done: list[dict[str, np.ndarray]] = []
    for batch in eval_batches(source, batch_size, part):
        pending.append(eval_step(state, put_batch(batch, mesh)))
        if len(pending) > IN_FLIGHT:
            done.append(jax.device_get(pending.popleft()))
    done.extend(jax.device_get(values) for values in pending)
    return {name: np.concatenate([d[name] for d in done])[: len(source)] for name in done[0]}


def means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean of each metric over all examples."""
    return {name: float(v.mean(dtype=np.float64)) for name, v in values.items()}


def evaluate_run(workdir: str, split: str, name: str) -> dict[str, Any]:
    """Evaluates a checkpoint of a run, opening nothing but that split.

    Args:
      workdir: the run directory.
      split: 'train', 'val' or 'test' for the run's own splits, or any split in TFDS's notation.
      name: 'best', 'last' or a step.

    Returns:
      {'split', 'step', 'examples', 'metrics': {name: mean}}.

    Raises:
      UserError: not a run, no such checkpoint, or no such split.
    """
    cfg = Config.from_json(read_config(workdir)['config'])
    folder = checkpoint.find(workdir, name, '--checkpoint')
    named = {key: getattr(cfg.data, key) for key in ('train', 'val', 'test')}
    limit = cfg.data.limit if split == 'train' else 0
    split = named.get(split) or split
    source = open_source(cfg.data, split, '--split', limit)
    mesh = make_mesh()
    batch_size = cfg.eval_batch_size or cfg.batch_size
    check_batch_size('eval_batch_size', batch_size, mesh.size)

    task = make_task(cfg, source.classes, source.image_shape[2])
    model = make_model(cfg.model, task.outputs)
    variables = on_mesh(abstract_variables(model, source.image_shape), mesh)
    part = make_partition(cfg, *variables)
    plan = restore.make_plan(folder, *variables, (('.*', restore.LOAD),))
    params, model_state = restore.from_paths(restore.read(plan, *variables), *variables)
    # The plan has put the moving average in its place already, where the run kept one.
    state = TrainState(
        step=None, seed=None, params=params, model_state=model_state, opt_state=None, ema={}
    )
    batch = abstract_batch(source.image_shape, batch_size, mesh)
    step = make_eval_step(model, task, part)
    compiled = compile_step(step, jax.tree.map(_abstract, state), batch, mesh, donate=False)
    values = per_example(compiled.call, state, source, batch_size, mesh)
    return {
        'split': split,
        'step': int(folder.name),
        'examples': len(source),
        'metrics': means(values),
    }


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
