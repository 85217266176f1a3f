"""Trains a few steps on layouts of 8 simulated devices, and prints their metrics as JSON.

    export XLA_FLAGS=--xla_force_host_platform_device_count=8
    python -m tests.support.layouts MODEL STEPS LAYOUTS

LAYOUTS are names separated by commas, or '' for all. Changes to the config may follow, as JSON
pairs. A process has a fixed number of devices, so this needs a process of its own.
"""

import json
import sys

import jax
import numpy as np

from jaxtrain.config import Config, base
from jaxtrain.data.pipeline import Order, train_batches
from jaxtrain.loop.job import first_state, make_job
from jaxtrain.parallel.compile import compile_train_step
from jaxtrain.parallel.mesh import put_batch
from jaxtrain.params.sharding import nbytes_per_device

# Layout -> (number of devices, changes to the config).
LAYOUTS = {
    'one device': (1, {}),
    'data': (8, {}),
    'fsdp': (8, {'mesh__fsdp': 8}),
    'data x fsdp': (8, {'mesh__fsdp': 4}),
    'pmap': (8, {'parallel': 'pmap'}),
    'fsdp x tensor': (8, {'mesh__fsdp': 2, 'mesh__tensor': 2}),
    'tensor': (8, {'mesh__tensor': 4}),
}
FIELDS = {
    'cnn': {'widths': (8, 16), 'hidden': (32,), 'dropout': 0.2},
    'vit': {
        'patch': (4, 4), 'width': 32, 'depth': 2, 'heads': 4, 'mlp': 64, 'dropout': 0.2,
    },
}  # fmt: skip


def config(model: str, **changes) -> Config:
    """A config for scikit-learn's digits, with every random operation of a step."""
    c = base()
    c.model.name = model
    for name, value in FIELDS[model].items():
        c.model[name] = value
    c.data.name = 'digits'
    c.data.augment = (('shift', 1), ('noise', 5.0))
    c.data.mixup = 0.2
    c.batch_size = 32
    c.steps = 20
    c.optim.lr = 1e-2
    c.optim.clip_norm = (('.*', 1.0),)
    c.optim.weight_decay = 0.1
    c.ema = 0.9
    return Config(c.to_dict()).replace(**changes)


def losses(cfg: Config, devices: list, steps: int) -> dict:
    """The metrics of the steps, the leaves whose sharding has changed, and the bytes per device."""
    job = make_job(cfg, devices=devices)
    state, compiled = first_state(job, 0), compile_train_step(*job.program())
    batches = train_batches(job.train, np.arange(steps + 1), Order(batch_size=32, seed=0))
    rows = []
    for batch in batches:
        state, metrics = compiled.call(state, put_batch(batch, job.layout.mesh))
        rows.append({name: float(value) for name, value in metrics.items()})
    pairs = zip(*map(jax.tree.leaves, (state, job.abstract)), strict=True)
    moved = [x.shape for x, a in pairs if not x.sharding.is_equivalent_to(a.sharding, x.ndim)]
    return {
        'metrics': rows,
        'moved': moved,
        'params_per_device': nbytes_per_device(job.abstract.params),
        'opt_state_per_device': nbytes_per_device(job.abstract.opt_state),
    }


def main(model: str, steps: str, layouts: str, *changes: str) -> None:
    given = dict(json.loads(c) for c in changes)
    results = {}
    for layout, (count, settings) in LAYOUTS.items():
        if ('tensor' in layout and model == 'cnn') or (
            layouts and layout not in layouts.split(',')
        ):
            continue
        cfg = config(model, **given, **settings)
        results[layout] = losses(cfg, jax.devices()[:count], int(steps))
    print(json.dumps(results))


if __name__ == '__main__':
    main(*sys.argv[1:])
