"""Weights restored on another number of devices: 1 to 8, 8 to 1, a file to 8."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxtrain.checkpoints import checkpoint_files, checkpoint_list
from jaxtrain.config.files import load
from jaxtrain.loop.job import first_state, make_job
from jaxtrain.params.partition import by_path
from jaxtrain.weights import restore
from jaxtrain.weights.origins import timm
from tests.conftest import TINY, python, start
from tests.support.foreign_files import arrays, write

pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')

CONFIG = """
from jaxtrain.config import base


def get_config():
    c = base()
    c.regime = 'finetune'
    c.data.name = 'digits'
    c.data.image_size = (32, 48)
    c.batch_size = 8
    c.steps = 2
    c.model.name = ''
    c.restore.origin = 'timm'
    c.restore.model = 'vit_ti16'
    c.restore.rules = (
        ('backbone/position', 'resize'), ('backbone/patch/kernel', 'resize'),
        ('backbone/block_1/norm_2/(.*)', r'load backbone/block_0/norm_2/\\1'),
        ('head/.*', 'classes'), ('.*', 'load'),
    )
    return c
"""


def dump(out: str, config: str, *words: str) -> None:
    """Write the first state of a job, each leaf with its copies on all devices: [devices, ...]."""
    job = make_job(load(config, list(words)))
    abstract = job.abstract.params, job.abstract.model_state
    for path, leaf in restore.read(job.start.plan, abstract).items():
        # Leaves are read directly onto all devices, not copied from the first one.
        assert leaf.sharding == by_path(*abstract)[path].sharding, path
    state = first_state(job, seed=3)
    result = {}
    for path, leaf in by_path(state.params, state.model_state).items():
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == jax.device_count() and leaf.sharding.is_fully_replicated, path
        result[path] = np.stack(copies)
    np.savez(out, **result)


def on_8_devices(out: Path, config: str, *words: str) -> dict[str, np.ndarray]:
    """Run `dump` in a process with 8 devices, and return the arrays."""
    done = python('-m', 'tests.weights.test_restore_mesh', out, config, *words, devices=8)
    assert done.code == 0, done.err
    return dict(np.load(out))


def saved(workdir: Path) -> dict[str, np.ndarray]:
    """Read the checkpoint that a run starts from with Orbax; return arrays by parameter path."""
    folder = checkpoint_list.find(workdir, 'best', '')
    plain = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpoint_files.read_metadata(folder)
    )
    state = ocp.PyTreeCheckpointer().restore(folder / 'state', restore_args=plain)
    return by_path(state['params'], state['model_state'])


def assert_on_all(result: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Assert that the copy on every device is bit-identical to the expected array."""
    for path, array in expected.items():
        assert result[path].shape == (8, *array.shape), path
        for copy in result[path]:
            assert copy.tobytes() == np.asarray(array).tobytes(), path


def test_1_to_8(pretrained, tmp_path):
    words = (f'{TINY}:finetune', f'--config.init_from={pretrained}')
    result = on_8_devices(tmp_path / 'found.npz', *words)
    old = saved(pretrained)
    assert set(result) == set(old)
    assert_on_all(result, {p: a for p, a in old.items() if p.startswith('backbone/')})
    state = first_state(make_job(load(words[0], [words[1]])), seed=3)
    assert_on_all(result, by_path(state.params, state.model_state))  # the initialized head too


@pytest.mark.slow
def test_8_to_1(tmp_path):
    words = ('--config.steps=3', '--config.eval_every=3', '--config.data.test=')
    process = start(
        'train', f'--config={TINY}:full', f'--workdir={tmp_path}/run', *words, devices=8
    )
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and '8 device(s)' in out, out
    cfg = load(f'{TINY}:full', [f'--config.init_from={tmp_path}/run', '--config.steps=3'])
    state = first_state(make_job(cfg), seed=0)
    result, old = by_path(state.params, state.model_state), saved(tmp_path / 'run')
    assert set(result) == set(old)
    for path, leaf in result.items():
        assert len(leaf.devices()) == 1
        assert np.asarray(leaf).tobytes() == old[path].tobytes(), path


@pytest.mark.slow
def test_a_file_to_8(tmp_path):
    """Leaves loaded, resized, from another path and by class name equal those on one device."""
    weights = arrays(timm, 'vit_ti16', 4, (32, 32, 3))
    file = write(tmp_path / 'model.safetensors', weights)
    names = {'pretrained_cfg': {'label_names': ['3', '1', 'x', '0']}}
    (tmp_path / 'config.json').write_text(json.dumps(names))
    config = tmp_path / 'config.py'
    config.write_text(CONFIG)
    words = (str(config), f'--config.init_from={file}')
    there = on_8_devices(tmp_path / 'found.npz', *words)
    job = make_job(load(words[0], [words[1]]))
    assert job.start.plan.paths('resize') == ['backbone/patch/kernel', 'backbone/position']
    assert job.start.plan.paths('classes') == ['head/logits/bias', 'head/logits/kernel']
    state = first_state(job, seed=3)
    assert_on_all(there, by_path(state.params, state.model_state))
    up = weights['blocks.3.mlp.fc1.weight'].T
    assert_on_all(there, {'backbone/block_3/mlp/up/kernel': np.ascontiguousarray(up)})
    scale = weights['blocks.0.norm2.weight']
    assert_on_all(there, {'backbone/block_1/norm_2/scale': scale})


if __name__ == '__main__':
    dump(*sys.argv[1:])
