"""Half a gigabyte of weights: peak memory is little more than the size of the arrays."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.benchmarks.restore import FORMATS, ROOT, in_fresh_process

pytestmark = pytest.mark.slow

CONFIG = """
from jaxtrain.config import base


def get_config():
    c = base()
    c.regime = 'finetune'
    c.data.source = 'npz'
    c.data.path = '{data}'
    c.batch_size = 2
    c.steps = 1
    c.model.name = ''
    c.init_from = '{weights}'
    c.restore.origin = 'keras'
    c.restore.model = 'vgg16'
    c.restore.rules = (('head/logits/.*', 'init'), ('.*', 'load'))
    c.groups = (('head/logits/.*', 'head'), ('.*', 'frozen'))
    return c
"""

STATE = """
import sys
from pathlib import Path
import jax
from jaxtrain.config.files import load
from jaxtrain.loop.job import first_state, make_job
from tests.benchmarks.restore import _status
job = make_job(load(sys.argv[1], []))
before = _status('VmRSS')
Path('/proc/self/clear_refs').write_text('5')
jax.block_until_ready(first_state(job, 0))
print((_status('VmHWM') - before) / Path(sys.argv[2]).stat().st_size)
"""


@pytest.mark.parametrize('kind', FORMATS)
def test_peak_memory_is_at_most_1_3_times_the_file(kind, tmp_path):
    in_fresh_process('make', kind, str(tmp_path))
    assert 0.9 < float(in_fresh_process('memory', kind, str(tmp_path))) <= 1.3


def test_peak_memory_of_a_run_before_its_first_step(tmp_path):
    in_fresh_process('make', 'h5', str(tmp_path))
    weights = tmp_path / FORMATS['h5'][0]
    (tmp_path / 'data').mkdir()
    for split in ('train', 'val', 'test'):
        images = np.zeros((2, 224, 224, 3), np.uint8)
        np.savez(tmp_path / 'data' / f'{split}.npz', image=images, label=np.arange(2))
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(data=tmp_path / 'data', weights=weights))
    done = subprocess.run(
        [sys.executable, '-c', STATE, str(config), str(weights)],
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout.split()[-1]) <= 1.3
