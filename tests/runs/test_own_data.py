"""Runs on the user's own files: from a folder of images to predictions with its class names."""

import json
import shutil

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.conftest import TINY
from tests.runs.test_wrong_input import complaint

DIGITS = load_digits()
NAMES = {3: 'three', 8: 'eight'}


def picture(row: int) -> np.ndarray:
    """A digit as a colour image of 32x32, dark on a warm background."""
    grey = cv2.resize(255 - DIGITS.images[row].astype(np.uint8) * 15, (32, 32))
    return np.stack([grey // 2, grey, grey], -1)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """CLASS/*.png and *.jpg of threes and eights, not divided into splits."""
    root = tmp_path_factory.mktemp('own') / 'digits'
    for digit, name in NAMES.items():
        (root / name).mkdir(parents=True)
        for number, row in enumerate(np.flatnonzero(DIGITS.target == digit)[:120]):
            suffix = 'jpg' if number % 2 else 'png'
            cv2.imwrite(str(root / name / f'{number:03}.{suffix}'), picture(row))
    return root


def words(folder, workdir, *more: str, source='folder') -> tuple[str, ...]:
    changes = {
        'data.name': '', 'data.source': source, 'data.path': folder, 'data.image_size': '(16,16)',
        'data.limit': 0, 'task.name': 'binary', 'steps': 60, 'eval_every': 30, 'optim.lr': 0.01,
    }  # fmt: skip
    return (
        'train',
        f'--config={TINY}',
        f'--workdir={workdir}',
        *(f'--config.{key}={value}' for key, value in changes.items()),
        *more,
    )


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    from jaxtrain.cli import main

    workdir = tmp_path_factory.mktemp('own-run') / 'run'
    assert main(list(words(folder, workdir))) == 0
    return workdir


def test_two_classes_with_one_output(trained):
    result = json.loads((trained / 'result.json').read_text())
    assert result['classes'] == ['eight', 'three']  # sorted, whatever the digits are
    assert result['metrics']['test']['accuracy'] > 0.8
    head = [line.split('\t') for line in (trained / 'params.tsv').read_text().splitlines()]
    assert {row[0]: row[1] for row in head}['head/logits/kernel'] == '16x1'


def test_predictions_have_the_names_of_the_folders(trained, folder, jaxtrain, tmp_path):
    output = tmp_path / 'predictions.jsonl'
    assert jaxtrain('predict', f'--workdir={trained}', folder, f'--output={output}').code == 0
    predictions = [json.loads(line) for line in output.read_text().splitlines()]
    right = [line['class'] == line['file'].split('/')[-2] for line in predictions]
    assert len(predictions) == 240 and np.mean(right) > 0.8
    assert all(set(line['probabilities']) == {'eight', 'three'} for line in predictions)


def test_evaluation_of_a_split_that_hashes_deal_out(trained, jaxtrain):
    outcome = jaxtrain('evaluate', f'--workdir={trained}', '--split=test')
    result = json.loads((trained / 'result.json').read_text())
    assert f'accuracy={result["metrics"]["test"]["accuracy"]:.4g}' in outcome.out


def test_a_run_does_not_go_on_with_other_data(trained, folder, jaxtrain):
    (trained / 'result.json').rename(trained / 'result.away')
    before = (trained / 'metrics.jsonl').read_bytes()
    # A name that the hash deals to train.
    for number in range(1000, 1005):
        cv2.imwrite(str(folder / 'three' / f'{number}.png'), picture(3))
    line = complaint(jaxtrain(*words(folder, trained)))
    assert 'training data has changed' in line and 'examples is' in line
    for number in range(1000, 1005):
        (folder / 'three' / f'{number}.png').unlink()
    assert (trained / 'metrics.jsonl').read_bytes() == before
    # Nor with as many files of other names.
    (folder / 'three' / '000.png').rename(folder / 'three' / 'renamed.png')
    line = complaint(jaxtrain(*words(folder, trained)))
    assert 'training data has changed' in line
    (folder / 'three' / 'renamed.png').rename(folder / 'three' / '000.png')
    assert jaxtrain(*words(folder, trained)).code == 0
    (trained / 'result.away').unlink()


def test_images_that_cannot_be_read_are_named_or_left_out(folder, jaxtrain, tmp_path):
    folder = shutil.copytree(folder, tmp_path / 'digits')
    broken = folder / 'eight' / '004.png'
    broken.write_bytes(broken.read_bytes()[:100])
    line = complaint(jaxtrain(*words(folder, tmp_path / 'run')))
    assert str(broken) in line and "on_bad_image='skip'" in line
    assert not (tmp_path / 'run' / 'checkpoints').exists()

    skip = ('--config.data.on_bad_image=skip', '--config.steps=2')
    outcome = jaxtrain(*words(folder, tmp_path / 'run', *skip))
    assert outcome.code == 0 and f'left out 1 images that cannot be read: {broken}' in outcome.out
    assert json.loads((tmp_path / 'run' / 'result.json').read_text())['skipped_images'] == 1


def test_binary_task_with_ten_classes(jaxtrain, tmp_path):
    arguments = ('train', f'--config={TINY}', f'--workdir={tmp_path}', '--config.task.name=binary')
    assert "config.task.name='binary'" in complaint(jaxtrain(*arguments))


@pytest.mark.parametrize('kind', ['npz', 'manifest'])
def test_the_same_images_as_arrays_or_as_a_list(kind, folder, jaxtrain, tmp_path):
    files = sorted(folder.rglob('*.*'))
    data = tmp_path / ('data.npz' if kind == 'npz' else 'list.csv')
    if kind == 'npz':
        images = np.stack([cv2.imread(str(f))[..., ::-1] for f in files])
        labels = np.array([f.parent.name == 'three' for f in files], np.int64)
        np.savez(data, image=images, label=labels, classes=np.array(['eight', 'three']))
    else:
        rows = [f'{file},{file.parent.name}' for file in files]
        data.write_text('\n'.join(['path,label', *rows]) + '\n')
    outcome = jaxtrain(*words(data, tmp_path / 'run', source=kind))
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert result['classes'] == ['eight', 'three']
    assert result['metrics']['test']['accuracy'] > 0.8
