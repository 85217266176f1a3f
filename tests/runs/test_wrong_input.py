"""Wrong input ends with exit code 2 and one line: the error, its place, and the fix."""

import json

import jax
import numpy as np
import pytest

from jaxtrain.checkpoints import checkpoint_files, checkpoint_list
from jaxtrain.loop.recorder import Recorder
from jaxtrain.parallel.mesh import make_mesh, on_mesh
from tests.conftest import TINY, start


def complaint(outcome, details: bool = False) -> str:
    """The last line on stderr, which only details precede, and only if they are expected."""
    assert outcome.code == 2, outcome
    assert 'Traceback' not in outcome.out + outcome.err
    *before, line = outcome.err.splitlines()
    assert bool(before) == details, outcome.err
    assert line.startswith('jaxtrain: ') and line == line.strip()
    return line


def contents(folder) -> dict:
    """Every file in a folder, recursively, with its content."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def assert_says(line: str, parts) -> None:
    missing = [part for part in parts if part not in line]
    assert not missing, f'{missing} not in: {line}'


OVERRIDES = [
    pytest.param(*case[1:], id=case[0])
    for case in [
        ('misspelt key', ['optim.lrr=3'], ['--config.optim.lrr', "'optim.lr'"]),
        ('key without a value', ['steps'], ['--config.steps=VALUE']),
        ('unread key', ['init_checkpoint=last'], ["config.init_checkpoint='last'", 'remove it']),
        (
            'wrong type',
            ['steps=abc'],
            ['--config.steps=abc', 'config.steps', 'int', 'like 0'],
        ),
        (
            'fraction',
            ['steps=1.5'],
            ['--config.steps=1.5', 'config.steps', 'int', 'like 0'],
        ),
        ('model field', ['model.width=(1,)'], ['config.model.width', "'widths'"]),
        ('model field type', ['model.hidden=4'], ['config.model.hidden=4', 'tuple', 'default ()']),
        ('model choice', ['model.norm=nonee'], ["config.model.norm='nonee'", 'batch, none']),
        ('model name', ['model.name=cn'], ["config.model.name='cn'", "'cnn'"]),
        (
            'optimizer argument',
            ['optim.args.b3=0.5'],
            ['config.optim.args.b3', 'adamw', "'b"],
        ),
        (
            'rule matches nothing',
            ["groups=(('backbon/.*','frozen'),('.*','a'))"],
            ['config.groups', "'backbon/.*'", "'backbone/.*'"],
        ),
        (
            'rule matches a part',
            ["groups=(('backbone','frozen'),('.*','a'))"],
            ['config.groups', "'backbone'", "'backbone/.*'"],
        ),
        (
            'rule never wins',
            ["groups=(('.*','a'),('head/.*','b'))"],
            ['config.groups', "'head/.*'", 'move it up'],
        ),
        (
            'no rule for a parameter',
            ["groups=(('backbone/.*','a'),)"],
            ['config.groups', 'head/logits/kernel', "end the list with ('.*', VALUE)"],
        ),
        (
            'all frozen',
            ["groups=(('.*','frozen'),)"],
            ['config.groups', '8 parameters', "('head/.*', 'head')"],
        ),
        ('data set', ['data.name=digitz'], ['config.data.name', "'digitz'", 'names: digits']),
        ('no data set', ['data.name='], ['config.data.name is empty', 'digits']),
        ('split', ['data.train=trian'], ["config.data.train='trian'", "'train'"]),
        ('val split', ['data.val=vall'], ["config.data.val='vall'", "'val'"]),
        ('part of a split', ['data.test=test[x]'], ["config.data.test='test[x]'", 'train[:80%]']),
        ('limit', ['data.limit=5000'], ['config.data.limit=5000', 'class', '8', "'train'"]),
        ('batch', ['batch_size=64'], ['config.batch_size=64', '50 examples', 'to 50 or less']),
        ('batch of none', ['batch_size=0'], ['config.batch_size=0', 'at least 1']),
        ('steps and epochs', ['epochs=1'], ['config.steps=20', 'config.epochs=1', 'exactly one']),
        ('no steps', ['steps=0'], ['config.steps=0', 'config.epochs=0', 'exactly one']),
        ('ema', ['ema=1.0'], ['config.ema=1.0', 'at least 0 and less than 1']),
        ('negative ema', ['ema=-0.1'], ['config.ema=-0.1', 'at least 0 and less than 1']),
        ('negative seed', ['seed=-1'], ['config.seed=-1', 'between 0 and 4294967295']),
        ('large seed', ['seed=4294967296'], ['config.seed=4294967296', 'between 0 and']),
        ('never logs', ['log_every=0'], ['config.log_every=0', 'at least 1']),
        ('metric', ['best_metric=acc'], ["config.best_metric='acc'", "'accuracy'"]),
    ]
]


@pytest.mark.parametrize('overrides, parts', OVERRIDES)
def test_config(overrides, parts, jaxtrain, tmp_path):
    words = [f'--config.{word}' for word in overrides]
    outcome = jaxtrain('train', f'--config={TINY}:scratch', f'--workdir={tmp_path}', *words)
    assert_says(complaint(outcome), parts)
    # The folder is still free for a run with the corrected config.
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    'line, parts',
    [
        ('c.optim.lrr = 3', ["'lrr'", "'lr'"]),
        ('c.steps = "abc"', ['steps', 'int', 'str']),
        ('c.data.name = nam', ['NameError', "'nam'"]),
        ('c.steps = = 3', ['SyntaxError', 'invalid syntax']),
    ],
)
def test_config_file_is_named_with_the_wrong_line(line, parts, jaxtrain, tmp_path):
    file = tmp_path / 'wrong.py'
    file.write_text(
        f'from jaxtrain.config import base\n\ndef get_config():\n    c = base()\n    {line}\n'
        '    return c\n'
    )
    outcome = jaxtrain('train', f'--config={file}', f'--workdir={tmp_path / "run"}')
    assert_says(complaint(outcome), [f'{file}:5', *parts])


COMMANDS = [
    pytest.param(*case[1:], id=case[0])
    for case in [
        ('command', ['trian'], ["'trian'", "'train'", '--help']),
        ('no config', ['train', '--workdir=D'], ['--config ', 'train --help']),
        ('no workdir', ['train', '--config=T'], ['--workdir ', 'train --help']),
        ('no such file', ['inspect', '--config=nope.py'], ['--config=nope.py', 'config file']),
        (
            'variant',
            ['inspect', '--config=T:scratc'],
            ['--config', "'scratc'", "'scratch'", 'linear'],
        ),
        ('no flag', ['inspect', '--config=T', 'x=3'], ["'x=3'", 'inspect --help']),
        ('flag', ['train', '--config=T', '--workdir=D', '--nope=3'], ['--nope', 'train --help']),
        ('flag type', ['train', '--process=one'], ['--process=one', 'int']),
        (
            'process number',
            ['train', '--config=T', '--workdir=D', '--coordinator=a:1', '--processes=2']
            + ['--process=2'],
            ['--process=2', 'below --processes=2'],
        ),
        (
            'no coordinator',
            ['train', '--config=T', '--workdir=D', '--processes=2'],
            ['--processes', '--coordinator=HOST:PORT'],
        ),
        (
            'variant to compare',
            ['compare', '--config=T:full', '--workdir=D'],
            ['without a variant'],
        ),
        (
            'one arm',
            ['compare', '--config=T', '--workdir=D', "--config.compare.arms=('scratch',)"],
            ['config.compare', 'at least two different arms'],
        ),
        (
            'unknown arm',
            ['compare', '--config=T', '--workdir=D', "--config.compare.arms=('scratch','linea')"],
            ['--config', "'linea'", "'linear'"],
        ),
        (
            'no seeds',
            ['compare', '--config=T', '--workdir=D', '--config.compare.seeds=0'],
            ['config.compare', 'seeds of at least 1'],
        ),
        ('no run', ['evaluate', '--workdir=D'], ['is not a run directory', '--workdir of a run']),
        ('unfinished full', ['compare', '--config=T', '--workdir=D', '--full=D'], ['finished run']),
    ]
]


@pytest.mark.parametrize('words, parts', COMMANDS)
def test_command_line(words, parts, jaxtrain, tmp_path):
    words = [w.replace('=T', f'={TINY}').replace('=D', f'={tmp_path}') for w in words]
    assert_says(complaint(jaxtrain(*words)), parts)
    assert not contents(tmp_path)


def test_unknown_flag_points_to_the_flags_that_exist(jaxtrain):
    line = complaint(jaxtrain('evaluate', '--workdri=x'))
    assert_says(line, ['--workdri', 'workdir', 'evaluate --help'])


@pytest.mark.parametrize(
    'words, parts',
    [
        (['--checkpoint=7'], ['--checkpoint', "'7'", "'best', 'last' or one of", '60']),
        (['--checkpoint=bset'], ['--checkpoint', "'bset'", "'best', 'last' or one of"]),
        (['--checkpoint=060'], ['--checkpoint', "'060'"]),
        (['--split=tset'], ["jaxtrain: --split='tset'", "'test'"]),
    ],
)
def test_evaluate_a_run(words, parts, jaxtrain, pretrained):
    before = contents(pretrained)
    assert_says(complaint(jaxtrain('evaluate', f'--workdir={pretrained}', *words)), parts)
    assert contents(pretrained) == before


@pytest.mark.parametrize(
    'overrides, details, parts',
    [
        (['init_from=nowhere'], False, ["config.init_from='nowhere'", '--workdir of a run']),
        (['init_checkpoint=59'], False, ["no checkpoint '59'", "'best', 'last' or one of", '60']),
        (
            ["restore.rules=(('head/.*','fresh'),('.*','load'))"],
            False,
            [
                'config.restore.rules',
                "'head/.*'",
                "'fresh'",
                'load, resize, cl',
            ],
        ),
        (
            ["restore.rules=(('haed/.*','init'),('.*','load'))"],
            False,
            ['config.restore.rules', "'haed/.*'", "'head/.*'"],
        ),
        (
            ['model.widths=(8,12)'],
            True,
            ['config.init_from', 'backbone/conv_1/kernel', '3x3x8x16 float32 -> 3x3x8x12', '5 of']
            + ['set config.model to that of the checkpoint', 'config.restore.rules'],
        ),
        (
            ["restore.rules=(('.*','load'),)", 'model.hidden=(4,)'],
            True,
            ['its head differs', "add the rule ('head/.*', 'init')", 'config.restore.rules'],
        ),
    ],
)
def test_start_from_a_checkpoint(overrides, details, parts, jaxtrain, pretrained, tmp_path):
    before = contents(pretrained)
    words = [f'--config={TINY}:linear', f'--workdir={tmp_path}', f'--config.init_from={pretrained}']
    outcome = jaxtrain('train', *words, *(f'--config.{word}' for word in overrides))
    assert_says(complaint(outcome, details), parts)
    assert contents(pretrained) == before and not contents(tmp_path)


def test_checkpoint_of_another_model_is_compared_leaf_by_leaf(jaxtrain, pretrained):
    words = ['--config.model.widths=(8,12)', f'--config.init_from={pretrained}']
    outcome = jaxtrain('inspect', f'--config={TINY}:linear', *words)
    rows = [line.split() for line in outcome.err.splitlines()[:-1]]
    assert {path: action for action, path, *_ in rows} == {
        'backbone/conv_0/kernel': 'load',
        'backbone/conv_1/kernel': 'DIFFERS',
        **{f'backbone/norm_0/{name}': 'load' for name in ('bias', 'mean', 'scale', 'var')},
        **{f'backbone/norm_1/{name}': 'DIFFERS' for name in ('bias', 'mean', 'scale', 'var')},
        'head/logits/bias': 'init',
        'head/logits/kernel': 'init',
    }
    assert ['3x3x8x16', 'float32', '->', '3x3x8x12', 'float32'] in [line[2:] for line in rows]


def test_batch_not_divisible_by_the_devices(tmp_path):
    words = [f'--config={TINY}', f'--workdir={tmp_path}', '--config.batch_size=30']
    child = start('train', *words, devices=8)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 2 and 'Traceback' not in out
    assert_says(out.splitlines()[-1], ['jaxtrain: config.batch_size=30', '8 devices', '24 would'])
    assert not contents(tmp_path)


def test_workdir_of_a_run_with_another_config_is_unchanged(jaxtrain, pretrained):
    before = contents(pretrained)
    words = [f'--config={TINY}:full', f'--workdir={pretrained}', '--config.optim.lr=0.5']
    line = complaint(jaxtrain('train', *words))
    assert_says(line, [f'--workdir={pretrained}', 'optim.lr is 0.01 there and 0.5 here'])
    assert_says(line, ['give another folder, or the same config'])
    assert contents(pretrained) == before


def test_unwritable_workdir(jaxtrain, tmp_path):
    file = tmp_path / 'file'
    file.write_text('mine')
    line = complaint(jaxtrain('train', f'--config={TINY}', f'--workdir={file}/run'))
    assert_says(line, [f'--workdir={file}/run', 'Not a directory', 'another folder'])
    assert file.read_text() == 'mine'


def assert_last_is_finite(workdir) -> None:
    folder = checkpoint_list.find(workdir, 'last', '--checkpoint')
    wanted = {'params': checkpoint_files.read_metadata(folder)['params']}
    params = checkpoint_files.read(folder, on_mesh(wanted, make_mesh()))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)), folder


def test_loss_that_is_not_finite(jaxtrain, tmp_path, monkeypatch):
    """The loss becomes nan at step 8, between two checkpoints."""
    push = Recorder.push

    def spoil(self, step, metrics):
        push(self, step, {**metrics, 'loss': metrics['loss'] * (np.nan if step == 8 else 1)})

    monkeypatch.setattr(Recorder, 'push', spoil)
    words = ['--config.eval_every=3', '--config.log_every=1']
    line = complaint(jaxtrain('train', f'--config={TINY}', f'--workdir={tmp_path}', *words))
    assert_says(line, ['the loss is nan at step 8', 'config.optim.lr', 'config.optim.clip_norm'])
    lines = [json.loads(text) for text in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines if line['split'] == 'train'] == [*range(1, 8)]
    assert [line['step'] for line in lines if line['split'] == 'val'] == [3, 6]
    assert all(np.isfinite(v) for line in lines for k, v in line.items() if k != 'split')
    assert checkpoint_list.find(tmp_path, 'last', '--checkpoint').name == '6'
    assert_last_is_finite(tmp_path)
    assert not (tmp_path / 'result.json').exists()


def test_update_that_is_not_finite_is_never_saved(jaxtrain, tmp_path):
    """A step's loss is that of the parameters before the update, which may overflow itself."""
    words = ['--config.eval_every=1', '--config.optim.lr=1e30', '--config.optim.warmup=2 steps']
    line = complaint(jaxtrain('train', f'--config={TINY}', f'--workdir={tmp_path}', *words))
    assert_says(line, ['at step', 'config.optim.lr'])
    assert 'NaN' not in (tmp_path / 'metrics.jsonl').read_text()
    assert_last_is_finite(tmp_path)
