"""`jaxtrain evaluate`: exactly the numbers of the run, without opening other splits."""

import json
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxtrain.config.files import load
from jaxtrain.data.sources import tfds
from jaxtrain.data.sources.open import open_source
from jaxtrain.inference.trained import evaluate as evaluate_run
from jaxtrain.models import make_model
from jaxtrain.tasks.task import means
from jaxtrain.weights.bundle import resolve
from tests.conftest import TINY

# Orbax warns if it restores without a template.
pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')


def result(workdir: Path) -> dict:
    return json.loads((workdir / 'result.json').read_text())


@pytest.fixture(scope='module')
def plain(pretrained) -> dict[str, np.ndarray]:
    """Loss and accuracy of each val example: logits of the whole split in one call, then NumPy."""
    cfg = resolve(load(f'{TINY}:full', []), None)
    source = open_source(cfg.data, 'val', 'data.val')
    batch = source.fetch(np.arange(len(source)))
    step = str(result(pretrained)['best_step'])
    state = ocp.PyTreeCheckpointer().restore(pretrained / 'checkpoints' / step / 'state')
    variables = {'params': state['params'], **state['model_state']}
    inputs = (batch['image'] / np.float32(255) - 0.5) / 0.5
    logits = np.asarray(make_model(cfg.model, 10).apply(variables, inputs, train=False), np.float64)
    right = logits[np.arange(300), batch['label']]
    highest = logits.max(-1)
    loss = np.log(np.exp(logits - highest[:, None]).sum(-1)) + highest - right
    return {'loss': loss, 'accuracy': logits.argmax(-1) == batch['label']}


@pytest.mark.parametrize('split, examples', [('val', 300), ('test', 600)])
def test_exactly_the_numbers_of_the_run(split, examples, pretrained, jaxtrain):
    evaluated = evaluate_run(str(pretrained), split, 'best')
    ran = result(pretrained)
    assert evaluated == {
        'split': split,
        'step': ran['best_step'],
        'examples': examples,
        'metrics': ran['metrics'][split],
    }
    outcome = jaxtrain('evaluate', f'--workdir={pretrained}', f'--split={split}')
    assert outcome.code == 0 and not outcome.err
    printed = dict(word.split('=') for word in outcome.out.split()[1:])
    assert outcome.out.split()[0] == split
    assert int(printed['step']) == ran['best_step'] and int(printed['examples']) == examples
    for name, value in ran['metrics'][split].items():
        assert float(printed[name]) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize('split', ['val', 'test', 'test[:50]'])
def test_only_the_requested_split_is_opened(split, pretrained, monkeypatch):
    opened, whole = [], tfds._open

    def note(wanted, settings):
        opened.append(wanted.split)
        return whole(wanted, settings)

    monkeypatch.setattr(tfds, '_open', note)
    evaluated = evaluate_run(str(pretrained), split, 'last')
    assert opened == [split] and evaluated['split'] == split


def test_any_part_of_any_split(pretrained):
    whole, half, other = (
        evaluate_run(str(pretrained), split, 'last')
        for split in ('test', 'test[:300]', 'test[300:]')
    )
    assert (half['examples'], other['examples']) == (300, 300)
    for name, value in whole['metrics'].items():
        parts = (half['metrics'][name], other['metrics'][name])
        assert np.mean(parts) == pytest.approx(value, rel=1e-6) and parts[0] != parts[1]


def test_best_last_and_a_step(pretrained, tmp_path):
    """A run whose best checkpoint is not its last one."""
    workdir = tmp_path / 'run'
    shutil.copytree(pretrained, workdir)
    assert [p.name for p in (workdir / 'checkpoints').iterdir()] == ['60']
    shutil.copytree(workdir / 'checkpoints' / '60', workdir / 'checkpoints' / '30')
    with (workdir / 'metrics.jsonl').open('a') as file:
        worse = {'step': 60, 'split': 'val', 'accuracy': 0.0, 'loss': 9.0}
        file.write(json.dumps(worse) + '\n')
    evaluated = {
        name: evaluate_run(str(workdir), 'val', name)['step']
        for name in ('best', 'last', '30', '60')
    }
    assert evaluated == {'best': 30, 'last': 60, '30': 30, '60': 60}


@pytest.mark.parametrize('batch_size', [1, 7, 300, 512])
def test_every_example_counts_once_for_any_batch_size(batch_size, plain, pretrained, tmp_path):
    """7 does not divide the 300 examples, and 512 is more than all of them."""
    workdir = tmp_path / 'run'
    shutil.copytree(pretrained, workdir)
    written = json.loads((workdir / 'config.json').read_text())
    written['config']['eval_batch_size'] = batch_size
    (workdir / 'config.json').write_text(json.dumps(written))
    evaluated = evaluate_run(str(workdir), 'val', 'best')
    assert evaluated['examples'] == 300
    assert evaluated['metrics']['loss'] == pytest.approx(plain['loss'].mean(), abs=1e-6)
    assert evaluated['metrics']['accuracy'] == pytest.approx(plain['accuracy'].mean(), abs=1e-9)


def test_the_first_examples_in_order(plain, pretrained):
    """The first ten examples alone: in the order of the data, and without padding."""
    evaluated = evaluate_run(str(pretrained), 'val[:10]', 'best')['metrics']
    assert evaluated['loss'] == pytest.approx(plain['loss'][:10].mean(), abs=1e-6)
    assert plain['loss'][:10].mean() != pytest.approx(plain['loss'].mean(), abs=1e-3)


def test_the_train_split_is_limited_as_in_training(jaxtrain, tmp_path):
    words = ['--config.steps=1', '--config.data.test=']
    assert jaxtrain('train', f'--config={TINY}', f'--workdir={tmp_path}', *words).code == 0
    assert evaluate_run(str(tmp_path), 'train', 'last')['examples'] == 50


def test_examples_count_by_their_weights():
    values = {'loss': np.float32([1, 3, 9]), 'accuracy': np.float32([0, 1, 1])}
    assert means(values) == pytest.approx({'loss': 13 / 3, 'accuracy': 2 / 3})
    weighted = {**values, 'weight': np.float32([1, 3, 0])}
    assert means(weighted) == {'loss': 2.5, 'accuracy': 0.75}
