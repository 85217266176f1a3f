"""Earlier configs, translated to the current keys."""

import json
from dataclasses import replace

import pytest

from jaxtrain.checkpoints.checkpoint_list import best_step
from jaxtrain.config import base, changes
from jaxtrain.config.changes import CHANGES, Changes, current
from jaxtrain.config.closed import flatten
from jaxtrain.study.compare import _arm
from jaxtrain.tasks.tasks import TASKS
from jaxtrain.weights.bundle import of_run
from tests.conftest import TINY

KEYS = dict(flatten(base().to_dict()))
CNN = {'name': 'cnn', 'widths': [8, 16]}


def flat(written: dict, **entries) -> dict:
    return dict(flatten(current(written, Changes(**entries))))


def test_a_current_config_is_unchanged():
    written = json.loads(json.dumps({**base().to_dict(), 'model': CNN}))
    assert current(written, CHANGES) == written


def test_a_missing_key_has_its_default():
    result = flat({'seed': 3, 'optim': {'lr': 0.5}})
    assert result == {**KEYS, 'seed': 3, 'optim.lr': 0.5}


def test_a_missing_key_has_the_value_from_before_it_existed():
    before = {'frozen_norm': 'adapt', 'seed': 9}
    result = flat({'seed': 3}, before=before)
    assert (result['frozen_norm'], result['seed'], result['keep']) == ('adapt', 3, KEYS['keep'])


def test_a_renamed_key_keeps_its_value():
    names = {'rate': 'optim.lr', 'model.widths': 'model.w'}
    result = flat({'rate': 0.5, 'model': CNN}, names=names)
    assert (result['optim.lr'], result['model.w']) == (0.5, [8, 16])
    assert not {'rate', 'model.widths'} & set(result)


def test_a_renamed_value_is_found_by_the_new_name_of_its_key():
    names = {'kind': 'task.name'}
    values = {'task.name': {'categorical': 'classify'}, 'groups': {(('.*', 'a'),): (('.*', 'b'),)}}
    result = flat({'kind': 'categorical', 'groups': [['.*', 'a']]}, names=names, values=values)
    assert (result['task.name'], result['groups']) == ('classify', (('.*', 'b'),))
    assert flat({'kind': 'lm'}, names=names, values=values)['task.name'] == 'lm'


def test_a_missing_model_field_has_its_earlier_default():
    entries = {'fields': {'cnn': {'norm': 'none'}}, 'values': {'model.name': {'convnet': 'cnn'}}}
    assert flat({'model': CNN}, **entries)['model.norm'] == 'none'
    assert flat({'model': {'name': 'convnet'}}, **entries)['model.norm'] == 'none'
    assert flat({'model': {**CNN, 'norm': 'batch'}}, **entries)['model.norm'] == 'batch'
    assert 'model.norm' not in flat({'model': {'name': 'mlp'}}, **entries)


def test_the_table_names_current_keys():
    fields = {key for key in CHANGES.names.values() if key.startswith(('model.', 'optim.args.'))}
    assert set(CHANGES.names.values()) - fields <= set(KEYS)
    assert not set(CHANGES.names) & set(KEYS), 'an earlier name must not be used again'
    assert {*CHANGES.values, *CHANGES.before} <= set(KEYS)


@pytest.fixture
def old(pretrained, tmp_path, monkeypatch):
    """A finished run whose config.json has earlier names of several keys and values."""
    entries = Changes(
        names={
            'choose_by': 'best_metric',
            'data.average': 'data.mean',
            'model.sizes': 'model.widths',
        },
        values={'task.name': {'categorical': 'classify'}},
    )
    work = tmp_path / 'run'
    work.mkdir()
    for file in pretrained.iterdir():
        if file.name != 'config.json':
            (work / file.name).symlink_to(file)
    written = json.loads((pretrained / 'config.json').read_text())
    config = written['config']
    config['choose_by'] = config.pop('best_metric')
    config['data']['average'] = config['data'].pop('mean')
    config['model']['sizes'] = config['model'].pop('widths')
    config['task']['name'] = 'categorical'
    for key in ('every', 'mesh', 'restore'):
        del config[key]
    (work / 'config.json').write_text(json.dumps(written))
    monkeypatch.setattr(changes, 'CHANGES', entries)
    return work


def test_every_reader_of_a_run_uses_the_current_names(old, pretrained, jaxtrain):
    assert best_step(old) == best_step(pretrained)
    assert replace(of_run(old), where='') == replace(of_run(pretrained), where='')
    accuracy = TASKS['classify'].metric('accuracy')
    assert _arm('full', [old], accuracy) == _arm('full', [pretrained], accuracy)
    for words in (('evaluate', '--split=val'), ('status',)):
        earlier, current = (jaxtrain(*words, f'--workdir={run}') for run in (old, pretrained))
        assert (earlier.code, earlier.out) == (0, current.out.replace(str(pretrained), str(old)))
    again = jaxtrain('train', f'--config={TINY}:full', f'--workdir={old}')
    assert again.code == 0 and 'is finished' in again.out
    begun = jaxtrain('inspect', f'--config={TINY}:finetune', f'--config.init_from={old}')
    assert begun.code == 0
