"""A step computes the same numbers however it is distributed over devices."""

import json
import subprocess

import pytest

from jaxtrain.runs.metrics_log import read_metrics
from tests.conftest import TINY, python, start

STEPS = 20


def run(*words: str) -> dict:
    """The output of tests/support/layouts.py: the results of the same steps on each layout."""
    done = python('-m', 'tests.support.layouts', *words, devices=8)
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.fixture(scope='module', params=['cnn', 'vit'])
def results(request):
    """A CNN and a ViT, both with dropout, augmentation, mixup, clipping and weight decay."""
    return request.param, run(request.param, str(STEPS), '')


@pytest.mark.slow
def test_layouts_agree(results):
    model, layouts = results
    expected = layouts['one device']['metrics']
    assert len(expected) == STEPS
    # The parameters move: the comparison is not of steps that do nothing.
    first, last = (expected[step]['param_norm'] for step in (0, -1))
    assert abs(last / first - 1) > 1e-3  # a hundred times what may differ below
    assert len(layouts) == (7 if model == 'vit' else 5)
    for name, layout in layouts.items():
        for step, (ours, theirs) in enumerate(zip(layout['metrics'], expected, strict=True)):
            assert ours == pytest.approx(theirs, rel=1e-5), (name, step)


@pytest.mark.slow
def test_the_sharding_of_the_state_stays(results):
    _, layouts = results
    assert all(layout['moved'] == [] for layout in layouts.values())


@pytest.mark.slow
def test_sharding_saves_memory(results):
    model, layouts = results
    whole = layouts['one device']
    for name, share in (('data', 1), ('pmap', 1), ('fsdp', 8), ('data x fsdp', 4)):
        for key in ('params_per_device', 'opt_state_per_device'):
            # Biases and norms are not sharded, and neither are sizes that the devices do not
            # divide.
            assert layouts[name][key] >= whole[key] / share
            assert layouts[name][key] <= whole[key] / share * (1 if share == 1 else 1.6)
    if model == 'vit':
        assert layouts['fsdp x tensor']['params_per_device'] < 0.35 * whole['params_per_device']
        assert layouts['tensor']['params_per_device'] < 0.4 * whole['params_per_device']


@pytest.mark.slow
def test_parts_of_a_batch_agree_too():
    """Four parts of 8 rows, each sharded over 8 devices."""
    some = 'one device,data,pmap,fsdp x tensor'
    layouts = run('vit', '3', some, '["accumulate", 4]')
    expected = layouts['one device']['metrics']
    assert len(layouts) == 4
    for name, layout in layouts.items():
        for ours, theirs in zip(layout['metrics'], expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5), name


@pytest.mark.slow
def test_a_run_resumes_on_another_mesh(tmp_path):
    """It is saved with its parameters sharded over 8 devices, and resumes by pmap on 2."""
    words = ('train', f'--config={TINY}:full', '--config.steps=20', '--config.save_every=5')
    more = ('--config.keep=9', '--config.eval_every=20', '--config.log_every=1')
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'

    def finish(*overrides: str, workdir, devices: int) -> None:
        process = start(*words, *more, *overrides, f'--workdir={workdir}', devices=devices)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out

    finish(workdir=whole, devices=1)
    finish('--config.mesh.fsdp=8', workdir=cut, devices=8)
    for gone in ('result.json', 'checkpoints/20'):
        subprocess.run(['rm', '-r', str(cut / gone)], check=True)
    assert {p.name for p in (cut / 'checkpoints').iterdir()} == {'5', '10', '15'}
    finish('--config.parallel=pmap', workdir=cut, devices=2)
    ours, theirs = (
        {(x['split'], x['step']): x['loss'] for x in read_metrics(workdir)}
        for workdir in (cut, whole)
    )
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_pmap_refuses_several_processes(monkeypatch, jaxtrain, tmp_path):
    monkeypatch.setattr('jax.process_count', lambda: 2)
    words = ('--config.parallel=pmap', f'--workdir={tmp_path}/w')
    outcome = jaxtrain('train', f'--config={TINY}', *words)
    assert outcome.code == 2 and "set it to 'jit'" in outcome.err
    assert not (tmp_path / 'w' / 'config.json').exists()


@pytest.mark.parametrize(
    ('words', 'parts'),
    [
        (('--config.mesh.fsdp=2',), ('fsdp=2', '1 devices')),
        (('--config.parallel=pmap', '--config.mesh.data=1'), ()),
        (('--config.parallel=vmap',), ("config.parallel='vmap'", 'jit, pmap')),
    ],
)
def test_wrong_layouts(words, parts, jaxtrain, tmp_path):
    short = ('--config.steps=1', '--config.eval_every=0', '--config.log_every=1')
    outcome = jaxtrain('train', f'--config={TINY}', *short, *words, f'--workdir={tmp_path}/w')
    assert outcome.code == (2 if parts else 0)
    assert all(part in outcome.err for part in parts), outcome.err
