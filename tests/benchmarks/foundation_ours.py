"""Times jaxtrain's train step, or counts its floating point operations.

    python -m tests.benchmarks.foundation_ours SPEC time
    JAX_PLATFORMS=cpu python -m tests.benchmarks.foundation_ours SPEC flops

SPEC is `foundation.Spec` as JSON. The config is complete, as that of a recipe, and `train` would
compile the same program for it.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from jaxtrain.config import Config, base
from jaxtrain.costs.chips import chip_of
from jaxtrain.data.pipeline import Order, train_batches
from jaxtrain.loop.job import Job, first_state, make_job
from jaxtrain.parallel.compile import compile_train_step, use_compilation_cache
from jaxtrain.parallel.mesh import put_batch
from tests.benchmarks.foundation import BATCHES, Spec, print_out_of_memory, print_report

IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}


def config(spec: Spec) -> ConfigDict:
    """The config of a program."""
    c = base()
    c.regime = 'full'
    c.steps = 100_000
    c.batch_size = spec.batch_size
    c.precision = 'bfloat16'
    c.data.val = c.data.test = ''
    c.optim.warmup = '5%'
    _PROGRAMS[spec.program](c, spec)
    return c


def _images(c: ConfigDict, spec: Spec) -> None:
    c.data.source = 'npz'
    c.data.path = spec.folder
    c.data.augment = (('flip',),)


def _vit(c: ConfigDict, spec: Spec) -> None:
    _images(c, spec)
    c.model.name = 'vit'
    c.model.patch = (spec.patch, spec.patch)
    c.model.width, c.model.mlp = spec.width, 4 * spec.width
    c.model.depth, c.model.heads = spec.depth, spec.heads
    c.optim.lr = 1e-3
    c.optim.weight_decay = 0.1
    c.optim.clip_norm = (('.*', 1.0),)


def _resnet(c: ConfigDict, spec: Spec) -> None:
    _images(c, spec)
    c.data.update(IMAGENET)
    c.model.name = 'resnet'
    c.model.depth = spec.depth
    c.optim.name = 'sgd'
    c.optim.lr = 0.1
    c.optim.args.momentum = 0.9
    c.optim.weight_decay = 1e-4


def _gpt(c: ConfigDict, spec: Spec) -> None:
    c.task.name = 'lm'
    c.data.source = 'corpus'
    c.data.path = spec.folder
    c.data.tokenizer = f'{spec.folder}/tokenizer.json'
    c.data.length = spec.size
    c.model.name = 'gpt'
    c.model.width, c.model.context = spec.width, spec.size
    c.model.depth, c.model.heads = spec.depth, spec.heads
    c.optim.lr = 6e-4
    c.optim.args.b2 = 0.95
    c.optim.weight_decay = 0.1
    c.optim.clip_norm = (('.*', 1.0),)


_PROGRAMS = {'vit_b16': _vit, 'resnet50': _resnet, 'gpt2': _gpt}


def job_of(spec: Spec) -> Job:
    """The job, on a single device."""
    return make_job(Config(config(spec).to_dict()), devices=jax.devices()[:1])


def make_steps(job: Job) -> Callable[[int], jax.Array]:
    """A function (number of steps) -> the last loss, which waits for the device.

    Each call continues from the state of the one before. As in the training loop, the step is
    compiled, the state made, and batches put on the device, where these few batches stay.
    """
    seed = job.cfg.seed
    step = compile_train_step(*job.program()).call
    read = train_batches(job.train, range(BATCHES + 1), Order(job.cfg.batch_size, seed))
    batches = itertools.cycle([put_batch(batch, job.layout.mesh) for batch in read])
    state = first_state(job, seed)

    def steps(count: int) -> jax.Array:
        nonlocal state
        for batch in itertools.islice(batches, count):
            state, metrics = step(state, batch)
        return jax.block_until_ready((state, metrics))[1]['loss']

    return steps


def flops(job: Job) -> float:
    """Floating point operations of a train step for one example."""
    return job.model_flops() / job.cfg.batch_size


def time_steps(spec: Spec) -> None:
    # Without a GPU, JAX falls back to the CPU.
    if spec.device == 'cuda' and jax.default_backend() != 'gpu':
        sys.exit("JAX finds no GPU; install 'jax[cuda13]', or try --tiny")
    device, job = jax.devices()[0], job_of(spec)
    steps = make_steps(job)
    steps(spec.warmup)
    start = time.perf_counter()
    loss = steps(spec.steps)
    seconds = time.perf_counter() - start
    chip = chip_of(device)
    print_report(
        spec.steps / seconds,
        float(loss),
        ('jax', 'flax'),
        device=device.device_kind,
        peak=chip.peak_bf16_flops if chip else 0.0,
        params=job.sizes()['params_total'],
    )


def main(spec: str, what: str) -> None:
    spec = Spec(**json.loads(spec))
    if what == 'flops':
        print(json.dumps({'flops': flops(job_of(spec))}))
        return
    try:
        time_steps(spec)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        print_out_of_memory()


if __name__ == '__main__':
    use_compilation_cache()
    main(*sys.argv[1:])
