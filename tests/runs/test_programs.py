"""README's commands for the three classic programs, on surrogates of their data and weights."""

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxtrain.config.files import load
from jaxtrain.data.datasets.official import OFFICIAL
from jaxtrain.runs.metrics_log import read_metrics
from tests.conftest import ROOT
from tests.runs.test_wrong_input import complaint
from tests.support import keras_files, surrogates

# These tests train all three programs, VGG16 at its full depth.
pytestmark = pytest.mark.slow

MLP = 'configs/scratch/mnist_mlp.py'
CNN = 'configs/full/cifar10_cnn.py'
VGG = 'configs/finetune/vgg16_folder.py'
TRAIN = 320  # examples of the surrogates


# Further settings for the surrogates: ten epochs, and VGG16 at full size, take minutes.
EPOCHS = 3
SMALL = {
    'mnist_mlp.py': (f'epochs={EPOCHS}.0',),
    'cifar10_cnn.py': (f'epochs={EPOCHS}.0',),
    'vgg16_folder.py': ('data.image_size=(32,32)', 'steps=20', 'eval_every=20', 'optim.lr=1e-3'),
    'vgg16_folder.py:finetune_top': ('data.image_size=(32,32)', 'steps=2', 'eval_every=2'),
}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A working directory with surrogates of all files that README's commands need."""
    folder = tmp_path_factory.mktemp('programs')
    (folder / 'configs').symlink_to(ROOT / 'configs')
    keras_files.write(folder / 'vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5', 'keras1')
    _photos(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ('mnist', 'cifar10'):
            archives = folder / 'tfds' / 'downloads' / 'manual' / name
            surrogates.write(name, archives, TRAIN, 60)
            infos = surrogates.url_infos(OFFICIAL[name], archives)
            patch.setattr(OFFICIAL[name], 'url_infos', infos)
        yield folder


def _photos(folder):
    rng = np.random.default_rng(0)
    for split, count in (('train', 12), ('val', 2), ('test', 2)):
        for name, level in (('cat', 60), ('dog', 180)):
            (folder / 'pets' / split / name).mkdir(parents=True)
            for number in range(count):
                photo = rng.normal(level, 25, (60 + number, 80, 3)).clip(0, 255)
                path = folder / 'pets' / split / name / f'{number}.jpg'
                cv2.imwrite(str(path), photo.astype(np.uint8))
    cv2.imwrite(str(folder / 'cat.jpg'), np.full((40, 40, 3), 60, np.uint8))


@pytest.fixture(scope='module')
def runs(place):
    """The run directories that README's commands for the three programs make."""
    from jaxtrain.cli import main

    section = (ROOT / 'README.md').read_text().split('## Three programs')[1]
    commands = re.search(r'^```\n(.*?)^```', section, re.MULTILINE | re.DOTALL)[1].splitlines()
    assert len(commands) == 6
    for command in commands:
        program, *words = shlex.split(command)
        assert program == 'jaxtrain'
        config = next((w.rpartition('/')[2] for w in words if w.startswith('--config=')), '')
        more = [f'--config.data.dir={place}/tfds'] if 'vgg' not in config and config else []
        more += [f'--config.{word}' for word in SMALL.get(config, ())]
        assert main([*words, *more]) == 0, command
    return place / 'runs'


def counts(text: str) -> tuple[int, int]:
    """(parameters, trained) as inspect prints them."""
    match = re.search(r'parameters ([\d,]+), trained ([\d,]+)', text)
    return tuple(int(n.replace(',', '')) for n in match.groups())


@pytest.mark.parametrize(
    'config, expected',
    [
        (MLP, (109_386, 109_386)),
        (CNN, (122_570, 122_570)),
        (VGG, (16_812_353, 2_097_665)),
        (f'{VGG}:head', (16_812_353, 2_097_665)),
    ],
)
def test_parameters(config, expected, runs, place, jaxtrain):
    where = () if VGG in config else (f'--config.data.dir={place}/tfds',)
    outcome = jaxtrain('inspect', f'--config={config}', *where)
    assert outcome.code == 0, outcome.err
    assert counts(outcome.out) == expected
    assert ('load 26 (backbone), init 4 (head)' in outcome.out) == (VGG in config)


def test_the_mlp_trains_in_epochs_with_a_line_each(runs):
    result, lines = (
        json.loads((runs / 'mnist_mlp' / 'result.json').read_text()),
        _lines('mnist_mlp'),
    )
    assert load(str(ROOT / MLP), []).epochs == 10.0
    assert result['steps'] == EPOCHS * TRAIN // 64 and result['classes'] == list('0123456789')
    logged = [line for line in lines if line['split'] == 'train']
    assert [line['step'] for line in logged] == [
        epoch * TRAIN // 64 for epoch in range(1, EPOCHS + 1)
    ]
    assert logged[-1]['loss'] < logged[0]['loss']
    assert set(result['metrics']) == {'test'}


def test_the_cnn_is_validated_on_test_after_each_epoch(runs):
    lines = _lines('cifar10_cnn')
    assert load(str(ROOT / CNN), []).epochs == 10.0
    assert len([line for line in lines if line['split'] == 'val']) == EPOCHS
    assert not [line for line in lines if line['split'] == 'test']
    train = [line['loss'] for line in lines if line['split'] == 'train']
    assert len(train) == EPOCHS and train[-1] < train[0]
    classes = json.loads((runs / 'cifar10_cnn' / 'result.json').read_text())['classes']
    assert classes[0] == 'airplane' and len(classes) == 10


def test_vgg16_trains_its_head_then_its_top(runs):
    result = json.loads((runs / 'pets' / 'result.json').read_text())
    assert result['classes'] == ['cat', 'dog'] and result['regime'] == 'finetune'
    assert result['metrics']['test']['accuracy'] == 1  # dark and bright
    rows = _table(runs / 'pets')
    assert {row['group'] for path, row in rows.items() if path.startswith('backbone/')} == {
        'frozen'
    }
    assert {row['from'] for path, row in rows.items() if path.startswith('head/')} == {'init'}

    for path, row in _table(runs / 'pets_top').items():
        frozen = bool(re.match(r'backbone/block[1-4]_', path))
        assert (row['group'] == 'frozen') == frozen, path
        if path.startswith('backbone/block5'):
            assert float(row['lr_mult']) == 0.1
        assert row['from'] == 'load'


def test_predictions_have_the_names_of_the_folders(runs):
    text = (runs / 'pets_top' / 'predictions.jsonl').read_text()
    predictions = {line['file']: line['class'] for line in map(json.loads, text.splitlines())}
    assert predictions == {
        **{f'pets/test/{name}/{n}.jpg': name for name in ('cat', 'dog') for n in range(2)},
        'cat.jpg': 'cat',
    }


def test_vgg16_without_its_weights_is_an_error(place, jaxtrain):
    line = complaint(jaxtrain('inspect', f'--config={VGG}', '--config.init_from=runs/nothing'))
    assert 'runs/nothing' in line and 'config.init_from' in line


def test_vgg16_with_three_classes_names_the_task_to_set(runs, jaxtrain, tmp_path):
    for name in ('cat', 'cow', 'dog'):
        for split in ('train', 'val', 'test'):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(8):
                path = tmp_path / split / name / f'{number}.png'
                cv2.imwrite(str(path), np.full((8, 8), 9, np.uint8))
    words = ('inspect', f'--config={VGG}', f'--config.data.path={tmp_path}')
    assert "set it to 'classify'" in complaint(jaxtrain(*words))
    outcome = jaxtrain(*words, '--config.task.name=classify')
    assert counts(outcome.out)[1] == 8192 * 256 + 256 + 256 * 3 + 3


def _lines(run: str) -> list[dict]:
    return read_metrics(Path('runs') / run)


def _table(run: Path) -> dict[str, dict[str, str]]:
    head, *rows = [line.split('\t') for line in (run / 'params.tsv').read_text().splitlines()]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}
