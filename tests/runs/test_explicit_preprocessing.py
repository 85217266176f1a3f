"""`crop=0.0` and `image_size=()` hold in every command, whatever the weights say."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtrain.config.files import load
from jaxtrain.inference.trained import read_record
from jaxtrain.inspection.prepare import prepare
from tests.conftest import TINY

EXPLICIT = ('--config.data.crop=0.0', '--config.data.image_size=()')
SHORT = ('--config.steps=1', '--config.eval_every=0')


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> Path:
    """A run on the centres of digits, enlarged: images of 8x8 pixels become 12x12."""
    from jaxtrain.cli import main

    workdir = tmp_path_factory.mktemp('weights') / 'run'
    settings = ('--config.data.crop=0.5', '--config.data.image_size=(12,12)')
    words = ['train', f'--config={TINY}:full', *SHORT, *settings, f'--workdir={workdir}']
    assert main(words) == 0
    return workdir


def recorded(run: Path) -> tuple:
    content = json.loads((run / 'config.json').read_text())
    data = content['config']['data']
    return data['crop'], data['image_size'], content['data']['shape']


def test_the_weights_apply_to_keys_that_are_left_open(weights):
    job = prepare(load(f'{TINY}:finetune', [f'--config.init_from={weights}']))
    assert (job.cfg.data.crop, job.train.shape) == (0.5, (12, 12, 1))
    assert recorded(weights) == (0.5, [12, 12], [12, 12, 1])


@pytest.mark.parametrize('command', ['inspect', 'plan'])
def test_commands_that_train_nothing(command, weights, jaxtrain, tmp_path):
    flags = [f'--output={tmp_path / "plan.json"}'] if command == 'plan' else []
    words = [f'--config={TINY}:finetune', f'--config.init_from={weights}', *EXPLICIT, *flags]
    outcome = jaxtrain(command, *words)
    assert outcome.code == 0, outcome.err
    job = prepare(load(f'{TINY}:finetune', words[1:4]))
    assert (job.cfg.data.crop, job.cfg.data.image_size, job.train.shape) == (0.0, (), (8, 8, 1))
    assert command == 'plan' or 'images 8x8x1' in outcome.out


def test_train_evaluate_predict_and_compare(weights, jaxtrain, tmp_path):
    run, words = tmp_path / 'run', [f'--config.init_from={weights}', *SHORT, *EXPLICIT]
    assert jaxtrain('train', f'--config={TINY}:finetune', *words, f'--workdir={run}').code == 0
    assert recorded(run) == (0.0, [], [8, 8, 1])
    # A second start continues the same run, and what reads the run finds the same settings.
    assert jaxtrain('train', f'--config={TINY}:finetune', *words, f'--workdir={run}').code == 0
    assert read_record(str(run), 'best').cfg.data.crop == 0.0
    outcome = jaxtrain('evaluate', f'--workdir={run}', '--split=test')
    result = json.loads((run / 'result.json').read_text())['metrics']['test']
    assert f'accuracy={result["accuracy"]:.3f}' in outcome.out.replace(' ', ''), outcome.out

    # The frame of this picture is all that is not black: a crop would miss it.
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:4], pixels[12:] = 255, 255
    Image.fromarray(pixels).save(tmp_path / 'frame.png')
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / 'black.png')
    scores = []
    for name in ('frame', 'black'):
        output = tmp_path / f'{name}.jsonl'
        words = [f'--workdir={run}', f'{tmp_path / name}.png', f'--output={output}']
        assert jaxtrain('predict', *words).code == 0
        scores.append({**json.loads(output.read_text()), 'path': ''})
    assert scores[0] != scores[1]

    arms = ["--config.compare.arms=('scratch','finetune')", '--config.compare.seeds=1']
    words = [f'--full={weights}', *SHORT, *EXPLICIT, *arms, f'--workdir={tmp_path / "study"}']
    assert jaxtrain('compare', f'--config={TINY}', *words).code == 0
    for arm in ('scratch', 'finetune'):
        assert recorded(tmp_path / 'study' / arm / 'seed_0') == (0.0, [], [8, 8, 1])
