"""Finished runs that are given more steps, and keys that may differ when a run resumes."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtrain.config.files import load
from jaxtrain.loop.extension import is_longer
from jaxtrain.loop.train import prepare
from jaxtrain.runs.folder import RunDir
from tests.conftest import TINY
from tests.runs.test_resume import lines_of, state_of

CONSTANT = "--config.optim.schedule=(('.*','constant'),)"
WSD = ("--config.optim.schedule=(('.*','wsd'),)", '--config.optim.cooldown=5 steps')


@pytest.fixture
def train(jaxtrain):
    def run(workdir: Path, *words: str):
        return jaxtrain('train', f'--config={TINY}:scratch', f'--workdir={workdir}', *words)

    return run


def result(workdir: Path) -> dict:
    content = json.loads((workdir / 'result.json').read_text())
    return {key: value for key, value in content.items() if key != 'seconds'}


@pytest.fixture
def constant(train, tmp_path) -> Path:
    """A finished run of 10 steps with a constant learning rate."""
    outcome = train(tmp_path / 'run', CONSTANT, '--config.steps=10')
    assert outcome.code == 0, outcome.err
    return tmp_path / 'run'


def test_more_steps_give_the_run_that_was_as_long_from_the_start(constant, train, tmp_path):
    outcome = train(constant, CONSTANT, '--config.steps=20')
    assert outcome.code == 0, outcome.err
    assert train(tmp_path / 'straight', CONSTANT, '--config.steps=20').code == 0
    assert result(constant) == result(tmp_path / 'straight')
    assert lines_of(constant) == lines_of(tmp_path / 'straight')
    ours, theirs = (state_of(workdir, 20) for workdir in (constant, tmp_path / 'straight'))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    written = json.loads((constant / 'config.json').read_text())
    assert written['config']['steps'] == 20
    assert written['extended'] == [{'steps': 10, 'epochs': 0.0}]
    assert 'is finished' in train(constant, CONSTANT, '--config.steps=20').out
    # It cannot become shorter again.
    outcome = train(constant, CONSTANT, '--config.steps=10')
    assert outcome.code == 2 and 'steps is 20 there and 10 here' in outcome.err


def test_keys_that_a_run_does_not_read_may_differ(constant, train):
    outcome = train(constant, CONSTANT, '--config.steps=10', '--config.compare.seeds=9')
    assert outcome.code == 0 and 'is finished' in outcome.out
    # A key that no run without init_from reads, as another version may have written it.
    path = constant / 'config.json'
    written = json.loads(path.read_text())
    written['config']['init_checkpoint'] = 'last'
    path.write_text(json.dumps(written))
    assert train(constant, CONSTANT, '--config.steps=10').code == 0
    written['config']['optim']['lr'] = 0.5
    path.write_text(json.dumps(written))
    outcome = train(constant, CONSTANT, '--config.steps=10')
    assert outcome.code == 2 and 'optim.lr is 0.5 there' in outcome.err


def test_a_schedule_that_depends_on_the_length_does_not_allow_more_steps(train, tmp_path):
    workdir = tmp_path / 'run'
    assert train(workdir, '--config.steps=10').code == 0
    before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
    outcome = train(workdir, '--config.steps=20')
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    for part in ('10 steps', 'learning rate at step 2 ', 'cosine', 'config.init_checkpoint=last'):
        assert part in outcome.err
    assert {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()} == before
    # The continuation that the message names.
    more = (f'--config.init_from={workdir}', '--config.init_checkpoint=last')
    more = (*more, '--config.regime=finetune', '--config.steps=10')
    assert train(tmp_path / 'more', *more).code == 0
    plan = json.loads((tmp_path / 'more' / 'restore.json').read_text())
    assert plan['checkpoint'].startswith(str(workdir)) and plan['checkpoint'].endswith('10')


def test_wsd_may_become_longer_before_its_cool_down(train, tmp_path):
    workdir = tmp_path / 'run'
    assert train(workdir, *WSD, '--config.steps=20', '--config.keep=2').code == 0
    outcome = train(workdir, *WSD, '--config.steps=40', '--config.keep=2')
    # The cool-down takes the learning rate of step 17 below that of step 16.
    assert outcome.code == 2 and 'learning rate at step 17 ' in outcome.err
    shutil.rmtree(workdir / 'checkpoints' / '20')
    words = [*WSD, '--config.steps=40', '--config.keep=2']
    job, _ = prepare(load(f'{TINY}:scratch', words), True, workdir)
    assert is_longer(RunDir(workdir), job)
