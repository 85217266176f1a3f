"""Whole runs of `jaxtrain train`: their files, their numbers, and resuming them."""

import json
import math
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from jaxtrain.cli import main
from jaxtrain.config.files import load
from jaxtrain.data.sources.open import open_source
from jaxtrain.inference import trained
from jaxtrain.loop import train as loop
from jaxtrain.loop.job import first_state, make_job
from jaxtrain.loop.recorder import TIMES
from jaxtrain.models import make_model
from jaxtrain.params.partition import flatten
from jaxtrain.weights.bundle import resolve
from tests.conftest import TINY, start

# Orbax warns if it restores without a template.
pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')


def result(workdir: Path) -> dict:
    return json.loads((workdir / 'result.json').read_text())


def lines(workdir: Path, split: str) -> list[dict]:
    text = (workdir / 'metrics.jsonl').read_text()
    return [line for line in map(json.loads, text.splitlines()) if line['split'] == split]


def untimed(workdir: Path) -> list[dict]:
    """metrics.jsonl without the fields that depend on the machine's speed."""
    log = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMES} for line in log]


def arrays(checkpoint: Path) -> dict:
    """The arrays in a checkpoint, by field of the state and path."""
    state = ocp.PyTreeCheckpointer().restore(checkpoint / 'state')
    return {field: flatten(tree) for field, tree in state.items() if isinstance(tree, dict)}


def stamps(folder: Path) -> dict[Path, tuple]:
    files = (p for p in folder.rglob('*') if p.is_file())
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


@pytest.fixture(scope='module')
def finished(tmp_path_factory, drawing) -> Path:
    """A run of tiny.py whose val accuracy is best at step 10 of 20, evaluated every 5 steps.

    seen.json has `evaluated`, the number of examples of each evaluation, and `wall`, the time that
    the run took.
    """
    workdir = tmp_path_factory.mktemp('train') / 'run'
    evaluated, whole = [], loop._read

    def spoilt(outline, state, source):
        evaluated.append(len(source))
        values = whole(outline, state, source)
        wrong = len(source) == 300 and int(state.step) != 10
        return {**values, 'accuracy': values['accuracy'] * (0 if wrong else 1)}

    with pytest.MonkeyPatch.context() as patch, drawing():
        patch.setattr(loop, '_read', spoilt)
        before = time.perf_counter()
        words = ['--config.eval_every=5', '--config.optim.weight_decay=0.5']
        assert main(['train', f'--config={TINY}', f'--workdir={workdir}', *words]) == 0
        wall = time.perf_counter() - before
    (workdir.parent / 'seen.json').write_text(json.dumps({'evaluated': evaluated, 'wall': wall}))
    return workdir


@pytest.fixture
def seen(finished) -> dict:
    return json.loads((finished.parent / 'seen.json').read_text())


def test_files_of_the_run_directory(finished):
    assert {p.name for p in finished.iterdir()} == {
        'config.json',
        'params.tsv',
        'metrics.jsonl',
        'events.jsonl',
        'checkpoints',
        'tensorboard',
        'test.npz',
        'result.json',
        'curves.png',
    }
    assert list((finished / 'tensorboard').glob('events.out.tfevents.*'))


def test_config_is_the_resolved_one(finished):
    written = json.loads((finished / 'config.json').read_text())
    assert set(written) == {'config', 'data', 'streams', 'seeds', 'versions', 'git'}
    assert written['data']['classes'] == list('0123456789')
    assert written['data']['shape'] == [8, 8, 1] and written['data']['examples'] == 50
    assert {'python', 'jax', 'flax', 'optax', 'numpy'} <= set(written['versions'])
    config = written['config']
    assert config['eval_every'] == 5 and config['optim']['weight_decay'] == 0.5
    assert config['optim']['name'] == 'adamw'  # a default of config.base
    assert config['model']['widths'] == [8, 16]
    assert config['model']['padding'] == 'SAME'  # a default of the model


def test_counts_are_those_of_the_parameter_table(finished):
    head, *rows = [line.split('\t') for line in (finished / 'params.tsv').read_text().splitlines()]
    table = [dict(zip(head, row, strict=True)) for row in rows]
    sizes = [math.prod(map(int, row['shape'].split('x'))) for row in table]
    assert [int(row['bytes']) for row in table] == [4 * size for size in sizes]
    assert {row['path']: row['shape'] for row in table} == {
        path: 'x'.join(map(str, leaf.shape))
        for path, leaf in arrays(finished / 'checkpoints' / '20')['params'].items()
    }
    summary = result(finished)
    assert summary['params_total'] == summary['params_trainable'] == sum(sizes) == 1442
    # adamw: two float32 moments per parameter, and a few counters.
    assert 0 <= summary['opt_state_bytes'] - 8 * sum(sizes) <= 64


def test_result(finished, seen):
    summary = result(finished)
    assert (summary['regime'], summary['steps'], summary['best_step']) == ('scratch', 20, 10)
    assert summary['examples_seen'] == 20 * 32
    assert summary['classes'] == list('0123456789')
    seconds = summary['seconds']
    assert set(seconds) == {'init', 'restore', 'compile', 'train', 'data_wait', 'eval', 'save'}
    assert min(seconds.values()) > 0
    # The phases do not overlap, and cover all but reading the config and drawing the curves.
    assert 0.3 * seen['wall'] < sum(seconds.values()) <= seen['wall']
    # Forward: a multiplication and an addition for each weight at each position, except at the
    # padding: of 3 x 3 taps at 8 x 8 and 4 x 4 positions 22 x 22 and 10 x 10 remain. Backward costs
    # twice that, without the gradient of the images.
    conv_0, conv_1, head = 2 * 8 * 22**2, 2 * 8 * 16 * 10**2, 2 * 160
    assert summary['flops_per_step'] == 32 * (2 * conv_0 + 3 * conv_1 + 3 * head)


def test_log(finished):
    train, val, test = (lines(finished, split) for split in ('train', 'val', 'test'))
    assert [line['step'] for line in train] == [5, 10, 15, 20]
    assert [line['step'] for line in val] == [5, 10, 15, 20]
    assert [line['step'] for line in test] == [10]
    names = {'step', 'split', 'loss', 'accuracy'}
    assert all(set(line) == names for line in val + test)
    times = {*TIMES} - {'tokens_per_s', 'mfu'}
    assert all(set(line) == names | times | {'grad_norm', 'param_norm', 'lr'} for line in train)
    cosine = [0.01 * (1 + math.cos(math.pi * (step - 1) / 20)) / 2 for step in (5, 10, 15, 20)]
    assert [line['lr'] for line in train] == pytest.approx(cosine, rel=1e-5)
    assert train[-1]['loss'] < train[0]['loss']


def test_metrics_are_those_of_the_best_checkpoint(finished, seen):
    summary = result(finished)['metrics']
    best, last = (lines(finished, 'val')[n] for n in (1, 3))
    assert summary['val'] == {name: best[name] for name in ('accuracy', 'loss')}
    assert summary['val']['loss'] != last['loss']
    assert {p.name for p in (finished / 'checkpoints').iterdir()} == {'10', '20'}
    by_step = {
        step: trained.evaluate(str(finished), 'test', step)['metrics'] for step in ('10', '20')
    }
    assert summary['test'] == by_step['10'] != by_step['20']
    # Test is read once, at the very end.
    assert seen['evaluated'] == [300] * 4 + [600]
    with np.load(finished / 'test.npz') as values:
        means = {name: values[name].astype(np.float64).mean() for name in values}
        assert all(values[name].shape == (600,) for name in values)
    assert means == summary['test']


def test_curves_are_drawn(finished):
    with Image.open(finished / 'curves.png') as picture:
        pixels = np.asarray(picture.convert('RGB'))
    white = (pixels == 255).all(-1).mean()
    coloured = (np.ptp(pixels.astype(int), axis=-1) > 60).mean()
    assert 0.5 < white < 0.99 and coloured > 0.001


def test_a_finished_run_is_left_unchanged(finished, jaxtrain, monkeypatch):
    def never(*_):
        raise AssertionError('a finished run compiles and reads nothing')

    for name in ('_compile', 'train_batches', '_start'):
        monkeypatch.setattr(loop, name, never)
    before = stamps(finished)
    words = ['--config.eval_every=5', '--config.optim.weight_decay=0.5']
    outcome = jaxtrain('train', f'--config={TINY}', f'--workdir={finished}', *words)
    assert outcome.code == 0 and f'{finished} is finished' in outcome.out
    assert stamps(finished) == before


def test_epochs_are_rounded_up_to_steps(jaxtrain, tmp_path):
    words = ['--config.steps=0', '--config.epochs=2', '--config.data.test=']
    assert jaxtrain('train', f'--config={TINY}', f'--workdir={tmp_path}', *words).code == 0
    summary = result(tmp_path)
    # 2 x 50 examples in batches of 32
    assert summary['steps'] == 4 and summary['examples_seen'] == 128
    assert set(summary['metrics']) == {'val'}
    assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['4']


def test_a_run_without_logs_finishes(jaxtrain, tmp_path):
    words = ['--config.steps=4', '--config.data.val=', '--config.data.test=']
    assert jaxtrain('train', f'--config={TINY}', f'--workdir={tmp_path}', *words).code == 0
    assert result(tmp_path)['metrics'] == {}


@pytest.fixture(scope='module')
def averaging(tmp_path_factory) -> Path:
    """A run that keeps a moving average."""
    workdir = tmp_path_factory.mktemp('ema')
    assert main(['train', f'--config={TINY}', f'--workdir={workdir}', '--config.ema=0.9']) == 0
    return workdir


def test_the_moving_average_is_evaluated(averaging):
    cfg = load(TINY, [])
    source = open_source(resolve(cfg, None).data, 'val', 'data.val')
    batch = source.fetch(np.arange(len(source)))
    saved = arrays(averaging / 'checkpoints' / '20')
    assert set(saved['ema']) == set(saved['params'])
    losses = {}
    for field in ('params', 'ema'):
        tree = ocp.PyTreeCheckpointer().restore(averaging / 'checkpoints' / '20' / 'state')
        variables = {'params': tree[field], **tree['model_state']}
        inputs = (batch['image'] / np.float32(255) - 0.5) / 0.5
        logits = np.asarray(make_model(cfg.model, 10).apply(variables, inputs, train=False))
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        losses[field] = -log_p[np.arange(300), batch['label']].mean()
    loss = lines(averaging, 'val')[-1]['loss']
    assert loss == pytest.approx(losses['ema'], abs=1e-5)
    assert abs(loss - losses['params']) > 1e-3


def test_other_runs_restore_the_moving_average(averaging):
    cfg = load(f'{TINY}:finetune', [f'--config.init_from={averaging}'])
    state = first_state(make_job(cfg), seed=0)
    saved, loaded = arrays(averaging / 'checkpoints' / '20'), flatten(state.params)
    backbone = [path for path in loaded if path.startswith('backbone/')]
    assert len(backbone) == 6
    for path in backbone:
        np.testing.assert_array_equal(loaded[path], saved['ema'][path], path)
        assert (np.asarray(loaded[path]) != saved['params'][path]).any(), path


def test_a_run_stopped_by_sigterm_resumes(jaxtrain, tmp_path):
    # Each step has exactly one line, including the step at which the run stops.
    words = ['--config.steps=150', '--config.eval_every=75', '--config.log_every=1']
    straight, stopped = tmp_path / 'straight', tmp_path / 'stopped'
    command = ['train', f'--config={TINY}', f'--workdir={stopped}', *words]
    child = start(*command)
    while not (log := stopped / 'metrics.jsonl').exists() or log.read_text().count('\n') < 5:
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.005)
    child.send_signal(signal.SIGTERM)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 42, output
    assert 'state saved' in output and output.splitlines()[-1].endswith('command again to go on')
    reached = max(int(p.name) for p in (stopped / 'checkpoints').iterdir())
    assert 5 <= reached < 150 and f'stopped at step {reached} of 150' in output
    assert not (stopped / 'result.json').exists()

    outcome = jaxtrain(*command)
    assert outcome.code == 0 and f'resumes after step {reached}' in outcome.out
    assert jaxtrain('train', f'--config={TINY}', f'--workdir={straight}', *words).code == 0
    assert untimed(stopped) == untimed(straight)
    one, two = (result(workdir) for workdir in (stopped, straight))
    assert {k: v for k, v in one.items() if k != 'seconds'} == {
        k: v for k, v in two.items() if k != 'seconds'
    }


def test_resuming_does_not_need_the_initial_checkpoint(pretrained, jaxtrain, tmp_path):
    source = shutil.copytree(pretrained, tmp_path / 'source')
    words = [f'--config={TINY}:linear', f'--config.init_from={source}', f'--workdir={tmp_path}/run']
    assert jaxtrain('train', *words).code == 0
    run = tmp_path / 'run'
    before, log, summary = (run / 'params.tsv').read_text(), untimed(run), result(run)
    shutil.rmtree(source)
    (run / 'result.json').unlink()
    # As if the run was killed in the evaluation after its last checkpoint, which resuming repeats.
    kept = [line for line in log if (line['split'], line['step']) != ('val', 20)]
    (run / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in kept))
    outcome = jaxtrain('train', *words)
    assert outcome.code == 0, outcome.err
    assert 'resumes after step 20' in outcome.out
    assert (run / 'params.tsv').read_text() == before
    assert len(kept) == len(log) - 1 and untimed(run) == log
    assert result(run)['metrics'] == summary['metrics']


@pytest.mark.slow
def test_several_steps_per_call_give_the_same_result(jaxtrain, tmp_path):
    """The same batches, randomness and log; evaluations and checkpoints after the same steps."""
    common = ['--config.steps=20', '--config.eval_every=8', '--config.log_every=4']
    common += ['--config.ema=0.9', "--config.data.augment=(('shift', 1),)"]
    one, several = tmp_path / 'one', tmp_path / 'several'
    for workdir, words in ((one, []), (several, ['--config.steps_per_call=3'])):
        command = ('train', f'--config={TINY}', f'--workdir={workdir}', *common, *words)
        assert jaxtrain(*command).code == 0
    for a, b in zip(untimed(one), untimed(several), strict=True):
        assert a.keys() == b.keys() and (a['step'], a['split']) == (b['step'], b['split'])
        for name in a.keys() - {'step', 'split'}:
            assert a[name] == pytest.approx(b[name], rel=1e-4), (name, a, b)
    saved, again = arrays(one / 'checkpoints' / '20'), arrays(several / 'checkpoints' / '20')
    for field in ('params', 'ema'):
        for path, leaf in saved[field].items():
            np.testing.assert_allclose(again[field][path], leaf, rtol=1e-3, atol=1e-5, err_msg=path)
    a, b = result(one), result(several)
    assert a['metrics']['test']['loss'] == pytest.approx(b['metrics']['test']['loss'], rel=1e-3)
    assert a['flops_per_step'] == b['flops_per_step']


def test_epochs_as_the_unit_of_the_cadence(jaxtrain, tmp_path):
    """50 examples in batches of 32: epochs end with steps 2, 4, 5, 7, 8."""
    words = ['--config.steps=0', '--config.epochs=5', '--config.every=epochs']
    words += ['--config.log_every=1', '--config.eval_every=2']
    assert jaxtrain('train', f'--config={TINY}', f'--workdir={tmp_path}', *words).code == 0
    assert [line['step'] for line in lines(tmp_path, 'train')] == [2, 4, 5, 7, 8]
    assert [line['step'] for line in lines(tmp_path, 'val')] == [4, 7, 8]


def test_the_previous_best_checkpoint_is_removed_at_the_end(jaxtrain, tmp_path, monkeypatch):
    """The last evaluation follows the last save, which still kept the best checkpoint so far."""
    whole = loop._read

    def rises(outline, state, source):
        values = whole(outline, state, source)
        return {**values, 'accuracy': values['accuracy'] * 0 + int(state.step)}

    monkeypatch.setattr(loop, '_read', rises)
    words = ['--config.steps=4', '--config.eval_every=2']
    assert jaxtrain('train', f'--config={TINY}', f'--workdir={tmp_path}', *words).code == 0
    assert result(tmp_path)['best_step'] == 4
    assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['4']


def test_without_val_the_table_shows_training_metrics(jaxtrain, tmp_path):
    words = ['--config.data.val=', '--config.eval_every=0', '--config.log_every=10']
    outcome = jaxtrain('train', f'--config={TINY}', f'--workdir={tmp_path}', *words)
    assert outcome.code == 0
    rows = [line.split() for line in outcome.out.splitlines()]
    assert ['step', 'loss', 'accuracy', 'lr', 'steps/s', 'examples/s', 'data', 'wait'] in rows
    shown = {row[0]: float(row[1]) for row in rows if row and row[0] in ('10', '20')}
    logged = {str(line['step']): line['loss'] for line in lines(tmp_path, 'train')}
    assert shown == pytest.approx(logged, rel=1e-3) and len(shown) == 2
