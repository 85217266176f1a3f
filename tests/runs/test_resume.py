"""A run that is killed at any moment and restarted has the same result, bit for bit."""

import json
import random
import shutil
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxtrain.loop.recorder import TIMES
from jaxtrain.runs.metrics_log import read_metrics
from tests.conftest import TINY, start

STEPS = 60
CONFIG = (
    f'--config={TINY}:full',
    f'--config.steps={STEPS}',
    '--config.eval_every=20',
    '--config.save_every=7',  # not a divisor of log_every, so that checkpoints interrupt windows
    '--config.log_every=5',
    '--config.keep=3',
    '--config.ema=0.9',
    "--config.data.augment=(('shift', 1),)",
)
# The number of kills in the slow test.
KILLS = 8


def state_of(workdir, step: int = STEPS) -> dict:
    """The saved state as host arrays, independent of the devices that it was saved from."""
    folder = workdir / 'checkpoints' / str(step) / 'state'
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            tree,
            is_leaf=lambda leaf: hasattr(leaf, 'shape'),
        )
        return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def lines_of(workdir) -> list[dict]:
    return [{k: v for k, v in x.items() if k not in TIMES} for x in read_metrics(workdir)]


def run(workdir, *more: str, **options) -> str:
    process = start('train', *CONFIG, f'--workdir={workdir}', *more, **options)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def assert_same(workdir, straight) -> None:
    ours, theirs = state_of(workdir), state_of(straight)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    assert lines_of(workdir) == lines_of(straight)
    results = [json.loads((w / 'result.json').read_text()) for w in (workdir, straight)]
    assert results[0]['metrics'] == results[1]['metrics']


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
def test_killed_at_a_random_step(seed, straight, tmp_path):
    """The run is killed twice, each time once a random step has been logged, and then finishes."""
    workdir = tmp_path / 'run'
    for goal in sorted(random.Random(seed).sample(range(5, 41), 2)):
        process = start('train', *CONFIG, f'--workdir={workdir}')
        deadline = time.time() + 120
        while process.poll() is None and time.time() < deadline:
            if any(x['step'] >= goal for x in read_metrics(workdir)):
                break
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert not (workdir / 'result.json').exists(), 'the run was over before it was killed'
    assert 'resumes after step' in run(workdir)
    assert_same(workdir, straight)


@pytest.mark.slow
def test_killed_at_random_moments(straight, tmp_path):
    """The run is killed in any phase, also while it starts, compiles, saves or ends."""
    began = time.time()
    run(tmp_path / 'timed')
    whole, rng = time.time() - began, random.Random(7)
    kills = runs = 0
    while kills < KILLS:
        workdir = tmp_path / f'run_{runs}'
        runs += 1
        while not (workdir / 'result.json').exists():
            process = start('train', *CONFIG, f'--workdir={workdir}')
            try:
                process.communicate(timeout=rng.uniform(0.3, 1.1) * whole)
                assert process.returncode == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
        assert_same(workdir, straight)


@pytest.mark.slow
def test_killed_between_the_last_checkpoint_and_the_result(straight, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(straight, workdir)
    for name in ('result.json', 'test.npz', 'curves.png'):
        (workdir / name).unlink()
    assert f'resumes after step {STEPS}' in run(workdir)
    assert_same(workdir, straight)


@pytest.mark.slow
def test_a_resumed_run_takes_the_same_batches_on_more_devices(straight, tmp_path):
    """Saved on 1 device and resumed on 4, losses are close; sums are taken in another order."""
    workdir = tmp_path / 'run'
    shutil.copytree(straight, workdir)
    (workdir / 'result.json').unlink()
    shutil.rmtree(workdir / 'checkpoints' / str(STEPS))
    shutil.rmtree(workdir / 'checkpoints' / '56')
    assert 'resumes after step 49' in run(workdir, devices=4)
    for ours, theirs in zip(lines_of(workdir), lines_of(straight), strict=True):
        assert ours['step'] == theirs['step']
        assert ours['loss'] == pytest.approx(theirs['loss'], rel=1e-3)
