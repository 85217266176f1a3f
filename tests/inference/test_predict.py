"""The command predict, compared with the evaluation of the run."""

import json
import shutil

import cv2
import jax
import numpy as np
import pytest

from jaxtrain.config import Config
from jaxtrain.data.sources.open import open_source
from jaxtrain.inference import trained
from jaxtrain.runs.folder import read_config
from tests.runs.test_wrong_input import complaint, contents


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def photos(tmp_path_factory, pretrained):
    """The test split of digits as PNG files 000.png, 001.png ... and their labels."""
    folder = tmp_path_factory.mktemp('photos')
    cfg = Config.from_json(read_config(pretrained)['config'])
    rows = open_source(cfg.data, 'test', 'test').fetch(np.arange(40))
    for number, image in enumerate(rows['image']):
        cv2.imwrite(str(folder / f'{number:03}.png'), image)
    return folder, rows


def test_predictions_agree_with_the_evaluation(photos, pretrained, jaxtrain, tmp_path):
    folder, rows = photos
    output = tmp_path / 'out.jsonl'
    outcome = jaxtrain('predict', f'--workdir={pretrained}', folder, f'--output={output}')
    assert outcome.code == 0 and not outcome.err
    predictions = read(output)
    assert [line['file'] for line in predictions] == [f'{folder}/{n:03}.png' for n in range(40)]
    right = np.array([int(line['class']) for line in predictions]) == rows['label']
    expected = trained.evaluate(str(pretrained), 'test[:40]', 'best')['metrics']
    assert right.mean() == pytest.approx(expected['accuracy']) and 0.3 < right.mean() < 1
    likelihood = [
        line['probabilities'][str(label)]
        for line, label in zip(predictions, rows['label'], strict=True)
        if str(label) in line['probabilities']
    ]
    # The loss is the mean of minus the log of these, except for labels outside the top five.
    assert -np.log(likelihood).mean() == pytest.approx(expected['loss'], rel=0.2)
    assert '40 images' in outcome.out and str(output) in outcome.out
    assert '... and 24 more' in outcome.out


def test_top_lists_every_class(photos, pretrained, jaxtrain, tmp_path):
    folder, rows = photos
    output = tmp_path / 'out.jsonl'
    words = ('predict', f'--workdir={pretrained}', f'--output={output}', '--top=10')
    assert jaxtrain(*words, folder).code == 0
    predictions = read(output)
    for line in predictions:
        chances = list(line['probabilities'].values())
        assert sum(chances) == pytest.approx(1, abs=1e-5) and len(chances) == 10
        assert chances == sorted(chances, reverse=True)
        assert line['probability'] == chances[0]
        assert line['class'] == next(iter(line['probabilities']))
    loss = [
        -np.log(x['probabilities'][str(y)]) for x, y in zip(predictions, rows['label'], strict=True)
    ]
    expected = trained.evaluate(str(pretrained), 'test[:40]', 'best')['metrics']
    assert np.mean(loss) == pytest.approx(expected['loss'], rel=1e-5)


def test_files_and_folders_each_once_in_the_order_named(photos, pretrained, jaxtrain, tmp_path):
    folder, _ = photos
    output = tmp_path / 'out.jsonl'
    paths = [folder / '007.png', folder, folder / '001.png']
    assert jaxtrain('predict', *paths, f'--workdir={pretrained}', f'--output={output}').code == 0
    files = [line['file'] for line in read(output)]
    assert files[0].endswith('007.png') and len(files) == len(set(files)) == 40
    assert files[1].endswith('000.png')


def test_predictions_are_written_to_the_run_by_default(photos, pretrained, jaxtrain):
    folder, _ = photos
    before = contents(pretrained)
    assert jaxtrain('predict', f'--workdir={pretrained}', folder / '003.png').code == 0
    written = pretrained / 'predictions.jsonl'
    assert len(read(written)) == 1
    written.unlink()
    assert contents(pretrained) == before


def test_images_of_another_size_and_format_are_converted(photos, pretrained, jaxtrain, tmp_path):
    """A large colour JPEG of a digit has the prediction of the 8x8 greyscale image."""
    folder, _ = photos
    grey = cv2.imread(str(folder / '002.png'), cv2.IMREAD_GRAYSCALE)
    large = np.repeat(np.repeat(grey, 16, 0), 16, 1)
    cv2.imwrite(str(tmp_path / 'large.jpg'), np.stack([large] * 3, -1))
    output = tmp_path / 'out.jsonl'
    paths = (tmp_path / 'large.jpg', folder / '002.png')
    words = ('predict', f'--workdir={pretrained}', f'--output={output}', '--top=10')
    assert jaxtrain(*words, *paths).code == 0
    large, small = (line['probabilities'] for line in read(output))
    assert all(abs(large[name] - small[name]) < 0.02 for name in small)


def test_images_that_cannot_be_read(photos, pretrained, jaxtrain, tmp_path):
    folder, _ = photos
    (tmp_path / 'broken.png').write_bytes((folder / '000.png').read_bytes()[:60])
    output = tmp_path / 'out.jsonl'
    paths = (folder / '000.png', tmp_path / 'broken.png')
    words = ('predict', f'--workdir={pretrained}', f'--output={output}', *paths)
    line = complaint(jaxtrain(*words))
    assert str(tmp_path / 'broken.png') in line and not output.exists()

    outcome = jaxtrain(*words, '--on_bad_image=skip')
    assert outcome.code == 0 and str(tmp_path / 'broken.png') in outcome.out
    assert [line['file'] for line in read(output)] == [str(folder / '000.png')]

    words = ('predict', f'--workdir={pretrained}', tmp_path / 'broken.png', '--on_bad_image=skip')
    assert 'none of the 1 images' in complaint(jaxtrain(*words))


@pytest.mark.parametrize(
    'words, parts',
    [
        ((), ['nothing was named to predict']),
        (('nowhere.png',), ['nowhere.png', 'no such file']),
        (('configs',), ['configs holds no images']),
        (('configs/alphabets.png', '--top=0'), ['--top=0']),
        (('configs/alphabets.png', '--on_bad_image=no'), ['--on_bad_image=no', 'skip']),
        (('configs/alphabets.png', '--output=nowhere/a.jsonl'), ['--output=', 'no folder nowhere']),
        (('configs/alphabets.png', '--checkpoint=7'), ["no checkpoint '7'"]),
    ],
)
def test_wrong_arguments(words, parts, pretrained, jaxtrain, tmp_path, monkeypatch):
    (tmp_path / 'configs').mkdir()
    monkeypatch.chdir(tmp_path)
    if 'configs' not in words:
        cv2.imwrite('configs/alphabets.png', np.zeros((8, 8), np.uint8))
    before = contents(pretrained)
    line = complaint(jaxtrain('predict', f'--workdir={pretrained}', *words))
    assert all(part in line for part in parts), line
    assert contents(pretrained) == before


@pytest.mark.slow
def test_predictions_on_several_devices(photos, pretrained, tmp_path):
    """Eight devices and a batch that they cannot fill give the same probabilities."""
    from tests.conftest import start

    folder, _ = photos
    predictions = []
    for devices in (1, 8):
        output = tmp_path / f'{devices}.jsonl'
        words = ('predict', f'--workdir={pretrained}', folder, f'--output={output}', '--top=10')
        child = start(*words, devices=devices)
        out, _ = child.communicate(timeout=120)
        assert child.returncode == 0, out
        predictions.append(read(output))
    one, eight = ([line['probabilities'] for line in lines] for lines in predictions)
    assert len(one) == len(eight) == 40
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, eight)


def test_images_are_cropped_as_in_training(pretrained, jaxtrain, tmp_path):
    """A run that crops images to half their sides reads the centre of a 16x16 image unchanged."""
    work = tmp_path / 'run'
    shutil.copytree(pretrained, work)
    config = json.loads((work / 'config.json').read_text())
    config['config']['data']['crop'] = 0.5
    (work / 'config.json').write_text(json.dumps(config))
    image = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    cv2.imwrite(str(tmp_path / 'whole.png'), image)
    cv2.imwrite(str(tmp_path / 'middle.png'), image[4:12, 4:12])
    predictions = []
    for run, name in ((work, 'whole'), (pretrained, 'middle')):
        output = tmp_path / f'{name}.jsonl'
        words = ('predict', f'--workdir={run}', tmp_path / f'{name}.png', f'--output={output}')
        assert jaxtrain(*words).code == 0
        predictions.append(read(output)[0]['probabilities'])
    assert predictions[0] == predictions[1]
