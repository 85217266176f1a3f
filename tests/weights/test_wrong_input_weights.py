"""Invalid weights in the real commands: exit code 2, one line, and no files left behind."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxtrain.weights.origins import timm
from tests.runs.test_wrong_input import assert_says, complaint
from tests.support.foreign_files import arrays, write
from tests.support.pth_files import WRITERS, Call, Global, Storage, Tensor, tensor

CONFIG = """
from jaxtrain.config import base


def get_config():
    c = base()
    c.regime = 'finetune'
    c.data.name = 'digits'
    c.data.image_size = (32, 32)
    c.batch_size = 8
    c.steps = 2
    c.model.name = ''
    c.restore.rules = (
        ('head/.*', 'init'), ('backbone/patch/kernel', 'resize'), ('.*', 'load')
    )
    return c
"""
KEY = 'blocks.1.mlp.fc1.bias'


@pytest.fixture(scope='module')
def tensors() -> dict[str, np.ndarray]:
    """Return the arrays of a ViT-Ti/16 for 32x32 RGB images and four classes."""
    return arrays(timm, 'vit_ti16', 4, (32, 32, 3))


Maker = Callable[[Path, dict], Path]


def changed(**changes) -> Maker:
    """Return a maker of a safetensors file with some arrays changed, or removed if None."""

    def make(folder: Path, tensors: dict) -> Path:
        kept = {k: changes.get(k, v) for k, v in {**tensors, **changes}.items()}
        return write(folder / 'f.safetensors', {k: v for k, v in kept.items() if v is not None})

    return make


def spoiled(at: float, value: float) -> Maker:
    def make(folder: Path, tensors: dict) -> Path:
        array = tensors[KEY].copy()
        array[int(at * len(array))] = value
        return write(folder / 'f.safetensors', {**tensors, KEY: array})

    return make


def cut(share: float) -> Maker:
    """Return a maker of a truncated safetensors file."""

    def make(folder: Path, tensors: dict) -> Path:
        file = write(folder / 'f.safetensors', tensors)
        os.truncate(file, int(share * file.stat().st_size))
        return file

    return make


def pickled(form: str, share: float = 1.0, **more) -> Maker:
    """Return a maker of a PyTorch file with other entries beside the weights, or truncated."""

    def make(folder: Path, tensors: dict) -> Path:
        weights = {key: tensor(array) for key, array in tensors.items()}
        put = {k: v(folder) if callable(v) else v for k, v in more.items()}
        file = WRITERS[form](folder / 'f.pth', {'state_dict': {**weights, **put}})
        os.truncate(file, int(share * file.stat().st_size))
        return file

    return make


def trap(folder: Path) -> Call:
    return Call(Global('os', 'system'), (f'touch {folder}/trapped',))


def beyond() -> Tensor:
    return Tensor(Storage(np.ones(767, 'f4')), (768,), (1,))


def in_npz(**changes) -> Maker:
    def make(folder: Path, tensors: dict) -> Path:
        np.savez(folder / 'f.npz', **{**tensors, **changes})
        return folder / 'f.npz'

    return make


def folder_with(*names: str) -> Maker:
    def make(folder: Path, tensors: dict) -> Path:
        for name in names:
            write(folder / name, tensors)
        return folder

    return make


def sharded(without: str = '', lost: str = '') -> Maker:
    """Return a maker of two shards and an index, without one shard or without one key."""

    def make(folder: Path, tensors: dict) -> Path:
        keys = list(tensors)
        shards = {'1.safetensors': keys[:50], '2.safetensors': keys[50:]}
        places = {key: name for name, part in shards.items() for key in part}
        (folder / 'm.safetensors.index.json').write_text(json.dumps({'weight_map': places}))
        for name, part in shards.items():
            if name != without:
                save_file({k: tensors[k] for k in part if k != lost}, folder / name)
        return folder

    return make


def text(folder: Path, tensors: dict) -> Path:
    (folder / 'model.safetensors').write_text('version https://git-lfs.github.com/spec/v1\n')
    return folder


def missing(folder: Path, tensors: dict) -> Path:
    return folder / 'none.pth'


NOT_WHOLE = 'save or download it again'
# Fault -> (maker, parts of the message).
CASES = {
    'cut off in the header': (cut(0.0005), [NOT_WHOLE]),
    'cut off in the arrays': (cut(0.9), [NOT_WHOLE]),
    'zip of torch cut off': (pickled('zip', 0.8), [NOT_WHOLE]),
    'stream of torch cut off': (pickled('stream', 0.8), [NOT_WHOLE]),
    'not downloaded': (text, [NOT_WHOLE]),
    'not there': (missing, ['does not exist']),
    'missing key': (
        changed(**{KEY: None}),
        [f'1 of 152 arrays, first {KEY} 768 float, are missing'],
    ),
    'misspelt key': (
        changed(**{KEY: None, 'blocks.1.mlp.fc1.biases': np.ones(768, 'f4')}),
        ["'blocks.1.mlp.fc1.biases'"],
    ),
    'unknown key': (changed(**{'my.extra': np.ones(3, 'f4')}), ['my.extra']),
    'integers': (changed(**{KEY: np.ones(768, 'i4')}), [KEY, '768 int32', '768 float']),
    'shape': (changed(**{KEY: np.ones(767, 'f4')}), [KEY, '767 float32', '768 float']),
    'NaN': (spoiled(0.5, np.nan), [f'{KEY} holds NaN or Inf']),
    'Inf at the end': (spoiled(0.9999, np.inf), [f'{KEY} holds NaN or Inf']),
    'code in a zip': (pickled('zip', x=trap), ['would run os.system', 'state_dict()']),
    'code in a stream': (pickled('stream', x=trap), ['would run os.system']),
    'a tensor beyond its storage': (
        pickled('zip', **{KEY: beyond()}),
        [f'{KEY} extends beyond its storage'],
    ),
    'objects in npz': (
        in_npz(extra=np.array([{}], object)),
        ['extra holds Python objects', 'numpy.savez'],
    ),
    'folder without weights': (folder_with(), ['holds no weights', 'give the weights file']),
    'two files': (
        folder_with('a.safetensors', 'b.safetensors'),
        ['holds several weights files: a.safetensors, b.safetensors', 'give one of them'],
    ),
    'shard missing': (sharded(without='2.safetensors'), ['names 2.safetensors', 'download it']),
    'key missing from its shard': (sharded(lost=KEY), [f'lists {KEY}', 'which does not hold it']),
}
# Cases that list all faults before the line.
LISTED = ('missing key', 'misspelt key', 'unknown key', 'integers', 'shape')


# Cases that are also tested with `train`, which opens and reads weights as `import` does.
TRAINED = (
    'cut off in the arrays', 'not there', 'misspelt key', 'unknown key', 'NaN', 'code in a zip',
    'two files', 'shard missing',
)  # fmt: skip


@pytest.mark.parametrize(
    'command, case', [*(('import', c) for c in CASES), *(('train', c) for c in TRAINED)]
)
def test_invalid_weights(command, case, tensors, jaxtrain, tmp_path):
    make, parts = CASES[case]
    weights, out = tmp_path / 'weights', tmp_path / 'out'
    weights.mkdir()
    source = make(weights, tensors)
    before = sorted(weights.iterdir())
    if command == 'import':
        outcome = jaxtrain('import', 'timm', source, '--model=vit_ti16', f'--workdir={out}')
    else:
        (tmp_path / 'config.py').write_text(CONFIG)
        words = [f'init_from={source}', 'restore.origin=timm', 'restore.model=vit_ti16']
        words = [f'--config.{word}' for word in words]
        outcome = jaxtrain('train', f'--config={tmp_path}/config.py', f'--workdir={out}', *words)
    message = complaint(outcome, details=case in LISTED)
    assert_says(message, [*parts, str(source)])
    assert sorted(weights.iterdir()) == before
    assert {p.name for p in tmp_path.iterdir()} <= {'weights', 'config.py', 'out'}
    if command == 'import':
        assert not out.exists()
    else:
        # The folder stays free for the same run with valid weights.
        assert not [path for path in out.rglob('*') if path.is_file()]


def test_bfloat16_is_accepted(tensors, jaxtrain, tmp_path):
    """The refusals above therefore have no other cause."""
    made = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
    file = write(tmp_path / 'f.safetensors', made)
    outcome = jaxtrain('import', 'timm', file, '--model=vit_ti16', f'--workdir={tmp_path}/out')
    assert (outcome.code, outcome.err) == (0, '')
    assert 'converted to float32 from bfloat16' in outcome.out


@pytest.mark.parametrize(
    'words, parts',
    [
        (
            ['restore.origin=tim', 'restore.model=vit_ti16'],
            ["origin 'tim'", "'timm'"],
        ),
        (
            ['restore.origin=timm', 'restore.model=vit_ti61'],
            ["config.restore.model 'vit_ti61'", "'vit_ti16'"],
        ),
        (
            ['restore.origin=timm', 'restore.model=vit_s16'],
            ['holds vit_ti16', 'vit_s16', 'config.restore.model=vit_ti16'],
        ),
        (['restore.origin=timm', 'restore.model='], ["config.restore.model ''", 'vit_ti16']),
        (['restore.model=vit_ti16'], ["origin ''", 'timm']),
    ],
)
def test_arguments_that_do_not_fit_the_file(words, parts, tensors, jaxtrain, tmp_path):
    file = write(tmp_path / 'f.safetensors', tensors)
    (tmp_path / 'config.py').write_text(CONFIG)
    words = [f'--config.{word}' for word in (f'init_from={file}', *words)]
    outcome = jaxtrain('inspect', f'--config={tmp_path}/config.py', *words)
    *_, message = outcome.err.splitlines()
    assert outcome.code == 2 and message.startswith('jaxtrain: ')
    assert_says(message, parts)
