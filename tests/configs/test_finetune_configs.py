"""The configs for fine-tuning: each variant runs on weights in the layouts that it is made for.

The weights are random, and the data are surrogates. The tests check that a config finds everything
it needs in the imported weights, trains the parameters that it names, and leaves the others
unchanged.
"""

import json
import re
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from jaxtrain.config.files import load
from jaxtrain.data.datasets.official import OFFICIAL
from jaxtrain.weights.origins import augreg, timm, torchvision
from jaxtrain.weights.stored import of_checkpoint
from tests.conftest import ROOT
from tests.support import surrogates
from tests.support.foreign_files import arrays, write
from tests.support.texts import word_tokenizer, write_list

pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')

FOLDER = ROOT / 'configs' / 'finetune'


@pytest.fixture(autouse=True, scope='module')
def quickly():
    """Disables most of XLA's optimizations, which take longer than these programs run."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def train(jaxtrain, tmp_path):
    """`train('file.py:variant', key=value)` -> the run directory; `__` stands for a dot."""

    def run(config: str, **changes) -> Path:
        workdir = tmp_path / config.replace(':', '_').removesuffix('.py')
        words = [f'--config.{key.replace("__", ".")}={value}' for key, value in changes.items()]
        outcome = jaxtrain('train', f'--config={FOLDER}/{config}', f'--workdir={workdir}', *words)
        assert outcome.code == 0, outcome.err
        return workdir

    return run


def imported(jaxtrain, origin, file, model, out) -> Path:
    outcome = jaxtrain('import', origin, file, f'--model={model}', f'--workdir={out}')
    assert outcome.code == 0, outcome.err
    return out


def leaves(workdir: Path) -> dict[str, np.ndarray]:
    """All parameters and BatchNorm statistics in a run's last checkpoint."""
    from jaxtrain.checkpoints import checkpoint_list
    from jaxtrain.parallel.mesh import make_mesh, on_mesh

    stored = of_checkpoint(checkpoint_list.find(workdir, 'last', ''))
    return {k: np.asarray(v) for k, v in stored.read(on_mesh(stored.leaves, make_mesh())).items()}


def result(workdir: Path) -> dict:
    return json.loads((workdir / 'result.json').read_text())


def config(workdir: Path) -> dict:
    return json.loads((workdir / 'config.json').read_text())['config']


def changed(one: Path, other: Path) -> set[str]:
    """The leaves that both runs have and that are not bit-identical."""
    a, b = leaves(one), leaves(other)
    return {k for k in a.keys() & b.keys() if a[k].shape != b[k].shape or (a[k] != b[k]).any()}


@pytest.fixture(scope='module')
def pets(tmp_path_factory):
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp('pets')
    for split, count in (('train', 8), ('val', 2), ('test', 2)):
        for name, level in (('cat', 60), ('dog', 180)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                photo = rng.normal(level, 25, (70, 90, 3)).clip(0, 255).astype(np.uint8)
                cv2.imwrite(str(root / split / name / f'{number}.png'), photo)
    return root


@pytest.fixture(scope='module')
def resnet(tmp_path_factory):
    """A file with a ResNet18 in torchvision's layout."""
    weights = arrays(torchvision, 'resnet18', 5, (224, 224, 3))
    return write(tmp_path_factory.mktemp('resnet') / 'resnet18.safetensors', weights)


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['finetune', 'linear'])
def test_resnet50_folder(variant, resnet, pets, jaxtrain, train, tmp_path):
    start = imported(jaxtrain, 'torchvision', resnet, 'resnet18', tmp_path / 'weights')
    small = {'data__image_size': '(64,64)', 'batch_size': 8, 'epochs': 1.0}
    name = f'resnet50_folder.py:{variant}'
    work = train(name, init_from=start, data__path=pets, **small)
    resolved = config(work)
    assert resolved['model']['depth'] == 18
    assert resolved['data']['mean'] == [0.485, 0.456, 0.406]
    assert (resolved['data']['crop'], resolved['data']['interpolation']) == (0.875, 'bilinear')
    moved = changed(start, work)
    backbone = {path for path in moved if path.startswith('backbone/')}
    assert {'head/logits/kernel', 'head/logits/bias'} == moved - backbone
    if variant == 'linear':
        assert not backbone
    else:
        # All convolutions are trained; BatchNorm's scales, biases and statistics are not.
        kernels = {path for path in leaves(start) if re.search('conv_.*kernel', path)}
        assert backbone == kernels
    assert np.isfinite(result(work)['metrics']['test']['loss'])


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cifar')
    archives = folder / 'downloads' / 'manual' / 'cifar10'
    surrogates.write('cifar10', archives, 300, 30)
    with pytest.MonkeyPatch.context() as patch:
        infos = surrogates.url_infos(OFFICIAL['cifar10'], archives)
        patch.setattr(OFFICIAL['cifar10'], 'url_infos', infos)
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize('origin, module', [('augreg', augreg), ('timm', timm)])
def test_vit_b16_transfer(origin, module, cifar, jaxtrain, train, tmp_path):
    """The images have another size than those of the weights, so that positions are resized."""
    weights = arrays(module, 'vit_ti16', 21, (32, 32, 3))
    file = tmp_path / 'vit.npz'
    if origin == 'augreg':
        np.savez(file, **weights)
    else:
        file = write(tmp_path / 'vit.safetensors', weights)
    start = imported(jaxtrain, origin, file, 'vit_ti16', tmp_path / 'weights')
    small = {'batch_size': 8, 'steps': 2, 'eval_every': 2, 'optim__warmup': '1 step'}
    size = {'data__image_size': '(48,48)', 'data__dir': cifar}
    work = train('vit_b16_transfer.py', init_from=start, **size, **small)
    resolved = config(work)
    assert resolved['model']['gelu'] == {'augreg': 'tanh', 'timm': 'erf'}[origin]
    assert resolved['data']['image_size'] == [48, 48] and resolved['data']['mean'] == [0.5]
    plan = json.loads((work / 'restore.json').read_text())
    resized = [leaf['path'] for leaf in plan['leaves'] if leaf['action'] == 'resize']
    assert resized == ['backbone/position']
    assert leaves(work)['backbone/position'].shape == (3, 3, 192)
    assert result(work)['params_trainable'] == result(work)['params_total']


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    """A folder with labelled texts, a corpus, and a tokenizer."""
    root = tmp_path_factory.mktemp('texts')
    word_tokenizer(root / 'words.json')
    animals = [('cat', 'purrs'), ('dog', 'barks')]
    rows = [(f'the {a} {v} {i}', a) for a, v in animals for i in range(80)]
    write_list(root / 'texts.jsonl', rows)
    (root / 'texts').mkdir()
    for i in range(20):
        (root / 'texts' / f'{i}.txt').write_text('the cat purrs and a dog barks\n' * 40)
    return root


@pytest.fixture
def first(jaxtrain, tmp_path):
    """`first(lines)` trains a tiny model to start from; `lines` are those of its config."""

    def run(lines: str) -> Path:
        text = f'from jaxtrain.config import base\n\n\ndef get_config():\n    c = base()\n{lines}'
        (tmp_path / 'first.py').write_text(text + '    return c\n')
        words = (f'--config={tmp_path}/first.py', f'--workdir={tmp_path}/first')
        outcome = jaxtrain('train', *words)
        assert outcome.code == 0, outcome.err
        return tmp_path / 'first'

    return run


GPT = """
    c.task.name = 'lm'
    c.data.source = 'corpus'
    c.data.path = '{root}/texts'
    c.data.tokenizer = 'bytes'
    c.data.length = 16
    c.steps = 1
    c.batch_size = 8
    c.model.name = 'gpt'
    c.model.width = 8
    c.model.depth = {depth}
    c.model.heads = 2
    c.model.context = 32
"""


@pytest.mark.slow
@pytest.mark.parametrize('variant, depth', [('all', 2), ('top', 12)])
def test_gpt2_text(variant, depth, texts, first, train):
    start = first(GPT.format(root=texts, depth=depth))
    small = {'data__length': 24, 'epochs': 0.1, 'optim__warmup': '1 step', 'optim__lr': 1e-2}
    work = train(f'gpt2_text.py:{variant}', init_from=start, data__path=texts / 'texts', **small)
    assert (work / 'tokenizer.json').read_text() == (start / 'tokenizer.json').read_text()
    moved = changed(start, work)
    top = {p for p in leaves(start) if re.match(r'backbone/(block_1[01]/|norm/)', p)}
    every = set(leaves(start)) - {'backbone/positions/embedding'}
    assert moved - {'backbone/positions/embedding'} == (top if variant == 'top' else every)
    before, after = (result(run)['metrics']['test']['loss'] for run in (start, work))
    assert after < before


BERT = """
    c.data.source = 'text'
    c.data.path = '{root}/texts.jsonl'
    c.data.tokenizer = '{root}/words.json'
    c.data.length = 8
    c.steps = 1
    c.batch_size = 8
    c.model.name = 'bert'
    c.model.vocabulary = 14
    c.model.width = 16
    c.model.depth = 1
    c.model.heads = 2
    c.model.positions = 8
    c.model.pool = 'mean'
"""


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['finetune', 'linear', 'scratch'])
def test_bert_classify(variant, texts, first, train):
    start = first(BERT.format(root=texts))
    small = {'data__length': 8, 'data__path': texts / 'texts.jsonl', 'optim__lr': 1e-2}
    work = train(f'bert_classify.py:{variant}', init_from=start, **small)
    assert (work / 'tokenizer.json').read_text() == (texts / 'words.json').read_text()
    trained, total = (result(work)[f'params_{name}'] for name in ('trainable', 'total'))
    assert trained == (2 * 16 + 2 if variant == 'linear' else total)
    moved = {path for path in changed(start, work) if path.startswith('backbone/')}
    assert bool(moved) == (variant != 'linear')
    plan = json.loads((work / 'restore.json').read_text())
    taken = {leaf['path'] for leaf in plan['leaves'] if leaf['action'] == 'load'}
    assert bool(taken) == (variant != 'scratch')
    assert result(work)['metrics']['test']['accuracy'] > 0.9 or variant == 'linear'


@pytest.mark.parametrize('file', sorted(path.name for path in FOLDER.glob('*.py')))
def test_docstring_names_configs_that_load(file):
    text = (FOLDER / file).read_text()
    commands = re.findall(r'^    jaxtrain (\w+) (.*)$', text, re.MULTILINE)
    assert {'import', 'train'} <= {command for command, _ in commands}
    for command, words in commands:
        for spec in re.findall(r'--config=(\S+)', words):
            assert command in ('train', 'compare')
            load(str(ROOT / spec), [])
