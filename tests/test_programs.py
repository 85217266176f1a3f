"""The three classic programs, by their configs, on surrogates of their data and weights."""

import json
import re

import cv2
import numpy as np
import pytest

from jaxtrain.config_file import load
from jaxtrain.data.official import OFFICIAL
from jaxtrain.run import read_metrics
from tests import surrogates
from tests.conftest import ROOT
from tests.test_wrong_input import complaint
from tests.weights import keras_files

MLP = ROOT / 'configs' / 'scratch' / 'mnist_mlp.py'
CNN = ROOT / 'configs' / 'full' / 'cifar10_cnn.py'
VGG = ROOT / 'configs' / 'finetune' / 'vgg16_folder.py'
TRAIN = 320  # examples of the surrogates


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A TFDS folder into which surrogates of the archives were put by hand."""
    folder = tmp_path_factory.mktemp('programs')
    with pytest.MonkeyPatch.context() as patch:
        for name in ('mnist', 'cifar10'):
            archives = folder / 'downloads' / 'manual' / name
            surrogates.write(name, archives, TRAIN, 60)
            infos = surrogates.url_infos(OFFICIAL[name], archives)
            patch.setattr(OFFICIAL[name], 'url_infos', infos)
        yield f'--config.data.dir={folder}'


@pytest.fixture(scope='module')
def vgg16(tmp_path_factory):
    """Random weights in the layout of Keras's download, imported; and a folder of photos."""
    from jaxtrain.cli import main

    folder = tmp_path_factory.mktemp('vgg16')
    file = keras_files.write(folder / 'vgg16_notop.h5', 'keras1')
    words = ('import', 'keras', str(file), '--model=vgg16', f'--workdir={folder}/vgg16')
    assert main(list(words)) == 0
    rng = np.random.default_rng(0)
    for split, count in (('train', 12), ('val', 2), ('test', 2)):
        for name, level in (('cat', 60), ('dog', 180)):
            (folder / 'pets' / split / name).mkdir(parents=True)
            for number in range(count):
                photo = rng.normal(level, 25, (60 + number, 80, 3)).clip(0, 255)
                path = folder / 'pets' / split / name / f'{number}.jpg'
                cv2.imwrite(str(path), photo.astype(np.uint8))
    return (
        f'--config.init_from={folder}/vgg16',
        f'--config.data.path={folder}/pets',
    )


def counts(text: str) -> tuple[int, int]:
    """(parameters, trained) as inspect prints them."""
    found = re.search(r'parameters ([\d,]+), trained ([\d,]+)', text)
    return tuple(int(n.replace(',', '')) for n in found.groups())


def test_parameters_of_the_mlp(data, jaxtrain):
    outcome = jaxtrain('inspect', f'--config={MLP}', data)
    assert counts(outcome.out) == (109_386, 109_386)


def test_parameters_of_the_cnn(data, jaxtrain):
    outcome = jaxtrain('inspect', f'--config={CNN}', data)
    assert counts(outcome.out) == (122_570, 122_570)


@pytest.mark.parametrize('variant', ['', ':head'])
def test_parameters_of_vgg16(variant, vgg16, jaxtrain):
    outcome = jaxtrain('inspect', f'--config={VGG}{variant}', *vgg16)
    assert outcome.code == 0, outcome.err
    assert counts(outcome.out) == (16_812_353, 2_097_665)
    assert 'load 26 (backbone), init 4 (head)' in outcome.out


def test_the_mlp_trains_in_epochs_with_a_line_each(data, jaxtrain, tmp_path):
    outcome = jaxtrain('train', f'--config={MLP}', data, f'--workdir={tmp_path}')
    assert outcome.code == 0, outcome.err
    cfg = load(str(MLP), [])
    steps = -(-10 * TRAIN // cfg.batch_size)
    result = json.loads((tmp_path / 'result.json').read_text())
    assert result['steps'] == steps and result['classes'] == list('0123456789')
    logged = [line for line in read_metrics(tmp_path) if line['split'] == 'train']
    assert [line['step'] for line in logged] == [
        -(-epoch * TRAIN // cfg.batch_size) for epoch in range(1, 11)
    ]
    assert logged[-1]['loss'] < logged[0]['loss']
    assert set(result['metrics']) == {'test'}


def test_the_cnn_is_validated_on_test_after_each_epoch(data, jaxtrain, tmp_path):
    outcome = jaxtrain('train', f'--config={CNN}', data, f'--workdir={tmp_path}')
    assert outcome.code == 0, outcome.err
    lines = read_metrics(tmp_path)
    assert len([line for line in lines if line['split'] == 'val']) == 10
    assert not [line for line in lines if line['split'] == 'test']
    train = [line['loss'] for line in lines if line['split'] == 'train']
    assert len(train) == 10 and train[-1] < train[0]
    assert 'aeroplane' not in outcome.out
    classes = json.loads((tmp_path / 'result.json').read_text())['classes']
    assert classes[0] == 'airplane' and len(classes) == 10


def test_vgg16_trains_its_head_then_its_top(vgg16, jaxtrain, tmp_path):
    small = ('--config.data.image_size=(32,32)', '--config.steps=10', '--config.eval_every=10')
    small += ('--config.log_every=5', '--config.optim.lr=1e-3')
    head = tmp_path / 'head'
    words = ('train', f'--config={VGG}', *vgg16, *small, f'--workdir={head}')
    outcome = jaxtrain(*words)
    assert outcome.code == 0, outcome.err
    result = json.loads((head / 'result.json').read_text())
    assert result['classes'] == ['cat', 'dog'] and result['regime'] == 'finetune'
    assert result['metrics']['test']['accuracy'] == 1  # dark and bright

    top = tmp_path / 'top'
    words = ('train', f'--config={VGG}:finetune_top', vgg16[1], *small[:1], f'--workdir={top}')
    words += ('--config.steps=2', '--config.eval_every=2', f'--config.init_from={head}')
    outcome = jaxtrain(*words)
    assert outcome.code == 0, outcome.err
    rows = [line.split('\t') for line in (top / 'params.tsv').read_text().splitlines()]
    columns = {name: place for place, name in enumerate(rows[0])}
    for row in rows[1:]:
        path, group = row[0], row[columns['group']]
        assert (group == 'frozen') == bool(re.match(r'backbone/block[1-4]_', path)), path
        if path.startswith('backbone/block5'):
            assert float(row[columns['lr_mult']]) == 0.1
        assert row[columns['from']] == 'load'


def test_vgg16_without_its_weights_says_how_to_get_them(vgg16, jaxtrain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = complaint(jaxtrain('inspect', f'--config={VGG}', vgg16[1]))
    assert 'runs/vgg16' in line and 'config.init_from' in line


@pytest.mark.parametrize('classes', [('cat', 'cow', 'dog')])
def test_vgg16_with_three_classes_says_what_to_set(classes, vgg16, jaxtrain, tmp_path):
    for name in classes:
        for split in ('train', 'val', 'test'):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(8):
                path = tmp_path / split / name / f'{number}.png'
                cv2.imwrite(str(path), np.full((8, 8), 9, np.uint8))
    words = ('inspect', f'--config={VGG}', vgg16[0], f'--config.data.path={tmp_path}')
    assert "set it to 'classify'" in complaint(jaxtrain(*words))
    outcome = jaxtrain(*words, '--config.task.name=classify')
    assert counts(outcome.out)[1] == 8192 * 256 + 256 + 256 * 3 + 3
