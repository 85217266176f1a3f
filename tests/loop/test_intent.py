"""A new run does what its config says, or is refused in every command before it compiles."""

import json

import pytest

from jaxtrain.config import Config, base
from jaxtrain.config.files import load
from jaxtrain.errors import UserError
from jaxtrain.loop.intent import check_groups, check_regime
from jaxtrain.loop.job import make_job
from tests.conftest import TINY

FROZEN = "--config.groups=(('backbone/.*','frozen'),('.*','head'))"
FIRST = "--config.groups=(('backbone/conv_0/.*','frozen'),('.*','rest'))"
FRESH = "--config.restore.rules=(('.*','init'),)"


def groups(value) -> None:
    check_groups(Config(base().to_dict()).replace(groups=value))


@pytest.mark.parametrize(
    'name',
    [
        'freeze',
        'Frozen',
        'FROZEN',
        'frozn',
        'forzen',
        'freezed',
        'froozen',
        'frozen_backbone',
        'fozen',
    ],
)
def test_names_that_are_similar_to_frozen(name):
    with pytest.raises(UserError) as caught:
        groups((('backbone/.*', name), ('.*', 'head')))
    assert repr(name) in str(caught.value) and "did you mean 'frozen'?" in str(caught.value)


@pytest.mark.parametrize(
    'name', ['frozen', 'front', 'unfrozen', 'not_frozen', 'from', 'block 1', 'all']
)
def test_other_names_of_groups(name):
    groups((('backbone/.*', name), ('.*', 'head')))


@pytest.mark.parametrize(
    'text',
    [
        'backbone/.*=frozen', "{'backbone/.*':'frozen'}", "(('.*','head/.*'),)",
        "('backbone/.*=frozen','head/.*=head')", 'frozen,',
    ],
)  # fmt: skip
def test_groups_that_are_not_rules(text):
    """They would name one group of all parameters."""
    cfg = load(f'{TINY}:scratch', [f'--config.groups={text}'])
    with pytest.raises(UserError) as caught:
        make_job(cfg)
    message = str(caught.value)
    assert 'config.groups' in message and '\n' not in message
    assert "(('backbone/.*', 'frozen'), ('.*', 'head'))" in message


@pytest.mark.parametrize(
    ('key', 'text'),
    [
        ('restore.rules', 'head/.*=init'), ('restore.rules', "{'head/.*':'init'}"),
        ('optim.schedule', 'head/.*=constant'), ('optim.schedule', "{'.*':'constant'}"),
        ('optim.lr_mult', 'backbone/.*=0.1'), ('optim.lr_mult', "{'.*':0.1}"),
        ('optim.decay_mult', 'backbone/.*=0.1'), ('optim.clip_norm', "{'.*':1.0}"),
        ('mesh.rules', 'backbone/.*=fsdp'), ('mesh.rules', "{'.*':'replicated'}"),
    ],
)  # fmt: skip
def test_no_rule_list_accepts_other_shapes(key, text, pretrained):
    words = [f'--config.init_from={pretrained}', f'--config.{key}={text}']
    assert f'config.{key}' in refused('finetune', *words)


def refused(variant: str, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        make_job(load(f'{TINY}:{variant}', list(words)))
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_fine_tuning_needs_weights(pretrained):
    message = refused('scratch', '--config.regime=finetune')
    assert "config.regime='finetune'" in message and 'config.init_from is empty' in message
    message = refused('finetune', f'--config.init_from={pretrained}', FRESH)
    assert 'load nothing' in message and str(pretrained) in message


def test_scratch_loads_no_weights(pretrained):
    start = f'--config.init_from={pretrained}'
    message = refused('scratch', start)
    assert "config.regime='scratch'" in message and "set config.regime='finetune'" in message
    assert make_job(load(f'{TINY}:scratch', [start, FRESH])).remarks == ()


def test_full_may_continue_but_not_freeze(pretrained):
    start = f'--config.init_from={pretrained}'
    (remark,) = make_job(load(f'{TINY}:full', [start])).remarks
    assert "'full' continues" in remark and str(pretrained) in remark
    assert "set config.regime='finetune'" in refused('full', start, FROZEN)


@pytest.mark.parametrize('variant', ['scratch', 'full'])
def test_a_frozen_random_backbone(variant):
    message = refused(variant, FROZEN)
    assert 'backbone/conv_0/kernel and 5 more parameters' in message and 'random' in message
    assert "config.groups=(('.*', 'all'),)" in message
    (remark,) = make_job(load(f'{TINY}:{variant}', [FIRST])).remarks
    assert 'backbone/conv_0/kernel' in remark and 'random' in remark


def test_fine_tuning_freezes_what_it_loads(pretrained):
    rules = "--config.restore.rules=(('head/.*|backbone/.*_1/.*','init'),('.*','load'))"
    message = refused('linear', f'--config.init_from={pretrained}', rules)
    assert 'backbone/conv_1/kernel and 2 more' in message and 'config.restore.rules' in message


def test_weights_that_do_not_exist_yet_are_judged_by_the_rules():
    """`compare` checks the arms before it trains the checkpoint that they start from."""
    groups = {'backbone/a': 'frozen', 'head/b': 'head'}
    assert check_regime(load(f'{TINY}:linear', []), groups, None) == ()
    with pytest.raises(UserError, match='load nothing of nowhere'):
        check_regime(load(f'{TINY}:linear', [FRESH]), groups, None)
    with pytest.raises(UserError, match='starts from random parameters'):
        check_regime(load(f'{TINY}:scratch', ['--config.init_from=nowhere']), groups, None)


@pytest.mark.parametrize('command', ['train', 'inspect', 'plan'])
def test_all_commands_refuse_alike(command, jaxtrain, tmp_path):
    flags = [f'--workdir={tmp_path / "run"}'] if command == 'train' else []
    outcome = jaxtrain(command, f'--config={TINY}:scratch', FROZEN, *flags)
    assert outcome.code == 2 and 'nothing but the head is trained' in outcome.err
    assert not (tmp_path / 'run' / 'config.json').exists()


def test_compare_refuses_before_it_trains(jaxtrain, tmp_path):
    words = [f'--config={TINY}', f'--workdir={tmp_path}', '--config.regime=finetune']
    outcome = jaxtrain('compare', *words)
    assert outcome.code == 2 and 'config.init_from is empty' in outcome.err
    assert not (tmp_path / 'full').exists()


def test_runs_that_have_begun_are_not_judged(tmp_path):
    cfg = load(f'{TINY}:scratch', [FROZEN])
    (tmp_path / 'config.json').write_text(json.dumps({'config': cfg.to_dict()}))
    assert make_job(cfg, workdir=tmp_path).remarks == ()
