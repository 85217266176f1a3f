"""The recipes in configs/full: docstrings and sizes, and training of the small variants."""

import ast
import gzip
import json
import lzma
import math
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtrain.config.files import load
from jaxtrain.data.sources.corpus import open_texts
from jaxtrain.data.sources.open import open_source
from jaxtrain.inspection import plan
from tests.conftest import ROOT, run_long

# Recipe -> the published figure in its docstring, and its source.
RECIPES = {
    'imagenet_resnet50': ('76.4%', 'arXiv:1706.02677'),
    'imagenet_vit_s16': ('76.5%', 'arXiv:2205.01580'),
    'imagenet_vgg16': ('73.0%', 'arXiv:1409.1556'),
    'gpt2_small': ('2.85 nats', 'karpathy/nanoGPT'),
}
IMAGENET = [name for name in RECIPES if name.startswith('imagenet')]


def path(name: str, variant: str = '') -> str:
    return str(ROOT / 'configs' / 'full' / f'{name}.py') + (f':{variant}' if variant else '')


def docstring(name: str) -> str:
    return ast.get_docstring(ast.parse(Path(path(name)).read_text()))


def band(name: str) -> tuple[float, float]:
    """The range that the docstring expects of the small variant, in percent or bits per byte."""
    match = re.search(r'expect\s+([\d.]+)%? to ([\d.]+)(%| bits per byte)', docstring(name))
    return float(match[1]), float(match[2])


@pytest.mark.parametrize('name', RECIPES)
def test_a_docstring_has_commands_and_expected_figures(name):
    whole, small = docstring(name).split(f'configs/full/{name}.py:tiny')
    commands = [shlex.split(line) for line in docstring(name).splitlines() if line[:4] == ' ' * 4]
    trains = [words for words in commands if words[:2] == ['jaxtrain', 'train']]
    assert [w for w in trains[0] if '=' in w][0] == f'--config=configs/full/{name}.py'
    for flag, *words in (words[2:] for words in trains):  # the commands load as they are written
        load(str(ROOT / flag.removeprefix('--config=')), words[:-1])
        assert words[-1].startswith('--workdir=')
    figure, source = RECIPES[name]
    assert source in whole and figure in whole[whole.lower().index('published') :]
    # The measured value lies inside the range that the slow tests check.
    measured = float(re.search(r'measured\s+(\d+\.\d+)', small)[1])
    low, high = band(name)
    assert low < measured < high


@pytest.mark.parametrize('name', RECIPES)
def test_the_small_variant_is_the_same_recipe(name):
    full, tiny = load(path(name), []), load(path(name, 'tiny'), [])
    assert full.regime == tiny.regime == 'full'
    assert full.model.name == tiny.model.name and full.task.name == tiny.task.name
    if name in IMAGENET:
        assert full.optim.name == tiny.optim.name
        assert dict(full.optim.args.items()) == dict(tiny.optim.args.items())
        assert full.optim.weight_decay == tiny.optim.weight_decay
        assert full.task.label_smoothing == tiny.task.label_smoothing
        assert full.data.random_crop and tiny.data.random_crop
        assert full.data.mixup == tiny.data.mixup


@pytest.mark.parametrize('name', IMAGENET)
def test_imagenet_can_be_planned_without_it(name):
    """Every key is read, and the sizes are the published ones."""
    cfg = load(path(name), [])
    job = plan.prepare(cfg, jax.devices())
    assert len(job.train) == 1_268_355  # 99% of 1,281,167
    assert job.train.shape == (224, 224, 3) and len(job.train.classes) == 1000
    published = {
        'imagenet_resnet50': 25_557_032,  # torchvision's documentation of resnet50
        'imagenet_vgg16': 138_357_544,  # torchvision's documentation of vgg16
    }
    if name in published:
        assert job.sizes()['params_total'] == published[name]
    assert job.steps == math.ceil(cfg.epochs * len(job.train) / cfg.batch_size)


@pytest.mark.slow
def test_gpt2_small_is_the_published_size():
    """With GPT-2's 50,257 tokens there are 124,439,808 parameters; with bytes there are fewer."""
    cfg = load(path('gpt2_small'), [])
    job = plan.prepare(cfg, jax.devices())
    assert job.sizes()['params_total'] + (50_257 - 257) * 768 == 124_439_808
    assert job.cfg.batch_size * job.train.shape[0] == 491_520


def trained(name: str, tmp_path, *words: str) -> dict:
    workdir = tmp_path / name
    run_long('train', f'--config={path(name, "tiny")}', f'--workdir={workdir}', *words)
    return json.loads((workdir / 'result.json').read_text())


@pytest.mark.slow
@pytest.mark.parametrize('name', IMAGENET)
def test_small_variants_reach_the_expected_accuracy(name, tmp_path):
    low, high = band(name)
    accuracy = 100 * trained(name, tmp_path)['metrics']['test']['accuracy']
    assert low <= accuracy <= high


@pytest.mark.slow
def test_the_small_language_model_against_compressors(tmp_path):
    """Bits per byte of held-out files; gzip and xz compress all of them together."""
    result = trained('gpt2_small', tmp_path)
    data = load(path('gpt2_small', 'tiny'), []).data
    held_out = open_source(data, data.test, 'config.data.test')
    targets = (held_out.fetch(np.arange(len(held_out)))['targets'] >= 0).sum()
    texts = [text.content.encode() for text in open_texts(data, data.test, 'config.data.test')]
    joined = b''.join(texts)
    bits = result['metrics']['test']['loss'] / math.log(2) * targets / len(joined)
    low, high = band('gpt2_small')
    assert low <= bits <= high
    assert bits < 8 * len(gzip.compress(joined, 9)) / len(joined) - 0.2
    # xz, the better compressor, is close: the model must not be more than 0.05 bits behind it.
    assert bits < 8 * len(lzma.compress(joined, preset=9)) / len(joined) + 0.05
