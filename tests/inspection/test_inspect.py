"""`jaxtrain inspect`: the parameter table and the restore plan, without side effects."""

import math
import re

import pytest

from jaxtrain.checkpoints import checkpoint, checkpoint_files
from jaxtrain.loop import job
from jaxtrain.loop import train as loop
from tests.conftest import TINY

SHAPES = {
    'backbone/conv_0/kernel': (3, 3, 1, 8),
    'backbone/conv_1/kernel': (3, 3, 8, 16),
    'backbone/norm_0/bias': (8,),
    'backbone/norm_0/scale': (8,),
    'backbone/norm_1/bias': (16,),
    'backbone/norm_1/scale': (16,),
    'head/logits/bias': (10,),
    'head/logits/kernel': (16, 10),
}
STATISTICS = {f'backbone/norm_{n}/{name}' for n in (0, 1) for name in ('mean', 'var')}


@pytest.fixture
def nothing_is_done(monkeypatch, tmp_path):
    """Makes training, reading arrays and saving fail, and checks that no file is written."""

    def never(*_, **__):
        raise AssertionError('inspect must not do this')

    for module, name in (
        (loop, 'train'),
        (loop, 'compile_step'),
        (job, 'first_state'),
        (checkpoint_files, 'read'),
        (checkpoint, 'save'),
    ):
        monkeypatch.setattr(module, name, never)
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def rows(out: str) -> dict[str, list[str]]:
    """Path -> cells of the parameter table."""
    table = out.split('\n\n')[0].splitlines()
    head = ' '.join(table[0].split())
    assert head == 'path shape dtype group lr_mult decay sharding bytes from'
    return {line.split()[0]: line.split()[1:] for line in table[1:]}


def test_every_parameter_is_listed(jaxtrain, nothing_is_done):
    outcome = jaxtrain('inspect', f'--config={TINY}:scratch')
    assert outcome.code == 0 and not outcome.err
    expected = {
        path: ['x'.join(map(str, shape)), 'float32', 'all', '1']
        + ['0.01' if path.endswith('kernel') else '0', 'replicated']
        + [f'{4 * math.prod(shape):,}', 'init']
        for path, shape in SHAPES.items()
    }
    assert rows(outcome.out) == expected
    total = sum(math.prod(shape) for shape in SHAPES.values())
    assert f'parameters {total:,}, trained {total:,}, optimizer ' in outcome.out
    assert '20 steps of 32 on 50 examples of 10 classes, images 8x8x1' in outcome.out
    assert 'restore' not in outcome.out


def test_frozen_parameters_and_the_restore_plan(jaxtrain, pretrained, nothing_is_done):
    files = {p: p.stat().st_mtime_ns for p in pretrained.rglob('*')}
    outcome = jaxtrain('inspect', f'--config={TINY}:linear', f'--config.init_from={pretrained}')
    assert outcome.code == 0 and not outcome.err
    table = rows(outcome.out)
    assert {path: (row[2], row[-1]) for path, row in table.items()} == {
        path: ('frozen', 'load') if path.startswith('backbone/') else ('head', 'init')
        for path in SHAPES
    }
    total, head = (sum(math.prod(s) for p, s in SHAPES.items() if t in p) for t in ('', 'head/'))
    match = re.search(r'parameters ([\d,]+), trained ([\d,]+), optimizer ([\d,]+)', outcome.out)
    counts = [int(text.replace(',', '')) for text in match.groups()]
    assert counts[:2] == [total, head]
    # Two float32 moments per trained parameter, and a few counters.
    assert 0 <= counts[2] - 8 * head <= 64
    plan = [line.split() for line in outcome.out.split('restore from')[1].splitlines()[1:]]
    assert {path: action for action, path, *_ in plan} == {
        path: 'init' if path.startswith('head/') else 'load' for path in {*SHAPES, *STATISTICS}
    }
    assert {p: p.stat().st_mtime_ns for p in pretrained.rglob('*')} == files


@pytest.mark.parametrize(
    'override, part',
    [
        ('batch_size=64', '50 examples'),
        ('best_metric=acc', "'accuracy'"),
        ('init_checkpoint=last', 'nothing in this run reads it'),
        ('data.val=vall', "'digits/1.0.0' has no such split"),
    ],
)
def test_errors_that_would_prevent_train_from_starting(override, part, jaxtrain, nothing_is_done):
    outcome = jaxtrain('inspect', f'--config={TINY}:scratch', f'--config.{override}')
    assert outcome.code == 2 and part in outcome.err and not outcome.out


def test_no_examples_are_needed(jaxtrain, nothing_is_done, monkeypatch, tmp_path_factory):
    """Nor is anything downloaded: sizes and shapes of well-known data sets are known."""
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('empty')))
    words = ['--config.data.name=cifar10', '--config.data.val=test', '--config.data.limit=0']
    outcome = jaxtrain('inspect', f'--config={TINY}:scratch', *words)
    assert outcome.code == 0, outcome.err
    assert '50,000 examples of 10 classes, images 32x32x3' in outcome.out


def test_an_emptied_init_from(jaxtrain, nothing_is_done):
    outcome = jaxtrain('inspect', f'--config={TINY}:finetune', '--config.init_from=')
    assert outcome.code == 0, outcome.err
    assert 'regime scratch' in outcome.out
    assert "config.init_from is empty: the regime is 'scratch'" in outcome.out
    assert 'ignored: config.restore.rules (' in outcome.out
    words = ['--config.init_from=', '--config.init_checkpoint=last']  # one that the user sets
    outcome = jaxtrain('inspect', f'--config={TINY}:finetune', *words)
    assert outcome.code == 2 and "config.init_checkpoint='last' was set" in outcome.err
    outcome = jaxtrain('inspect', f'--config={TINY}:linear', '--config.init_from=')
    assert outcome.code == 2 and "config.groups=(('.*', 'all'),)" in outcome.err
    words = ['--config.init_from=', '--config.regime=finetune']
    outcome = jaxtrain('inspect', f'--config={TINY}:finetune', *words)
    assert outcome.code == 2 and 'config.init_from is empty' in outcome.err


def test_what_is_ignored_is_reported(jaxtrain, nothing_is_done):
    words = ['--config.model.dropout=0.1', '--config.compare.seeds=3']
    outcome = jaxtrain('inspect', f'--config={TINY}:scratch', *words)
    assert 'ignored: config.model.dropout (' in outcome.out
    assert 'ignored: config.compare.seeds (' in outcome.err
