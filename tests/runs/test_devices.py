"""A run has the same losses on 1 device, on 8 simulated devices, and on 2 real processes."""

import subprocess
import sys

import pytest

from jaxtrain.cli import main
from jaxtrain.runs.metrics_log import read_metrics
from tests.conftest import ROOT, TINY, start
from tests.pod.test_meet import free_port

CONFIG = (
    f'--config={TINY}:full',
    '--config.steps=20',
    '--config.eval_every=10',
    '--config.log_every=1',
    '--config.optim.lr=1e-3',
    "--config.data.augment=(('shift', 1), ('noise', 5.0))",
    '--config.model.hidden=(32,)',
    '--config.model.dropout=0.2',
)


def losses(workdir) -> dict:
    return {(x['split'], x['step']): x['loss'] for x in read_metrics(workdir)}


def finish(*processes) -> None:
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('one') / 'run'
    assert main(['train', *CONFIG, f'--workdir={workdir}']) == 0
    return losses(workdir)


@pytest.mark.slow  # test_layouts.py tests these layouts too
def test_8_devices_equal_1(one_device, tmp_path):
    """This includes BatchNorm over the global batch, dropout and augmentation."""
    finish(start('train', *CONFIG, f'--workdir={tmp_path}/run', devices=8))
    ours = losses(tmp_path / 'run')
    assert len(ours) == 20 + 2 + 1
    assert ours == pytest.approx(one_device, rel=1e-5)


@pytest.mark.slow
def test_2_processes_equal_1(one_device, tmp_path):
    """Fresh ones, each with its own hash seed."""
    words = [sys.executable, '-m', 'jaxtrain', 'train', *CONFIG, f'--workdir={tmp_path}/run']
    words += [f'--coordinator=127.0.0.1:{free_port()}', '--processes=2']
    both = (
        subprocess.Popen([*words, f'--process={number}'], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for number in range(2)
    )  # fmt: skip
    finish(*both)
    assert losses(tmp_path / 'run') == pytest.approx(one_device, rel=1e-5)


@pytest.mark.slow
def test_other_batches_are_noticed(one_device, tmp_path):
    """The comparison above can fail: another seed has other losses from the first step."""
    finish(start('train', *CONFIG, '--config.seed=1', f'--workdir={tmp_path}/run'))
    ours = losses(tmp_path / 'run')
    assert abs(ours['train', 1] - one_device['train', 1]) > 1e-3
