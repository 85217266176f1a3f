"""An earlier config, read with the keys of today."""

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


def test_a_config_of_today_stays_as_it_is():
    written = json.loads(json.dumps({**base().to_dict(), 'model': CNN}))
    assert current(written, CHANGES) == written


def test_a_key_that_a_run_lacks_has_its_default():
    found = flat({'seed': 3, 'optim': {'lr': 0.5}})
    assert found == {**KEYS, 'seed': 3, 'optim.lr': 0.5}


def test_or_what_runs_did_before_it_existed():
    before = {'frozen_norm': 'adapt', 'seed': 9}
    found = flat({'seed': 3}, before=before)
    assert (found['frozen_norm'], found['seed'], found['keep']) == ('adapt', 3, KEYS['keep'])


def test_a_renamed_key_keeps_its_value():
    found = flat({'rate': 0.5, 'model': CNN}, names={'rate': 'optim.lr', 'model.widths': 'model.w'})
    assert (found['optim.lr'], found['model.w']) == (0.5, [8, 16])
    assert not {'rate', 'model.widths'} & set(found)


def test_a_renamed_value_is_looked_up_by_the_new_name_of_its_key():
    names = {'kind': 'task.name'}
    values = {'task.name': {'categorical': 'classify'}, 'groups': {(('.*', 'a'),): (('.*', 'b'),)}}
    found = flat({'kind': 'categorical', 'groups': [['.*', 'a']]}, names=names, values=values)
    assert (found['task.name'], found['groups']) == ('classify', (('.*', 'b'),))
    assert flat({'kind': 'lm'}, names=names, values=values)['task.name'] == 'lm'


def test_an_earlier_default_of_a_field_of_a_model():
    entries = {'fields': {'cnn': {'norm': 'none'}}, 'values': {'model.name': {'convnet': 'cnn'}}}
    assert flat({'model': CNN}, **entries)['model.norm'] == 'none'
    assert flat({'model': {'name': 'convnet'}}, **entries)['model.norm'] == 'none'
    assert flat({'model': {**CNN, 'norm': 'batch'}}, **entries)['model.norm'] == 'batch'
    assert 'model.norm' not in flat({'model': {'name': 'mlp'}}, **entries)


def test_the_table_fits_the_keys_of_today():
    fields = {key for key in CHANGES.names.values() if key.startswith(('model.', 'optim.args.'))}
    assert set(CHANGES.names.values()) - fields <= set(KEYS)
    assert not set(CHANGES.names) & set(KEYS), 'an earlier name must not be used again'
    assert {*CHANGES.values, *CHANGES.before} <= set(KEYS)


@pytest.fixture
def old(pretrained, tmp_path, monkeypatch):
    """A finished run in whose config.json several keys and values have other names."""
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


def test_every_reader_of_a_run_sees_the_names_of_today(old, pretrained, jaxtrain):
    assert best_step(old) == best_step(pretrained)
    assert replace(of_run(old), where='') == replace(of_run(pretrained), where='')
    accuracy = TASKS['classify'].metric('accuracy')
    assert _arm('full', [old], accuracy) == _arm('full', [pretrained], accuracy)
    for words in (('evaluate', '--split=val'), ('status',)):
        ours, theirs = (jaxtrain(*words, f'--workdir={run}') for run in (old, pretrained))
        assert (ours.code, ours.out) == (0, theirs.out.replace(str(pretrained), str(old)))
    again = jaxtrain('train', f'--config={TINY}:full', f'--workdir={old}')
    assert again.code == 0 and 'is finished' in again.out
    begun = jaxtrain('inspect', f'--config={TINY}:finetune', f'--config.init_from={old}')
    assert begun.code == 0
