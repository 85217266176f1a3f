"""The command import: it writes a complete run directory or nothing."""

import hashlib
import json
import os
import subprocess
import sys

import h5py
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxtrain.checkpoints import checkpoint_list
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.models import make_model
from jaxtrain.models.vgg import convolutions
from jaxtrain.parallel.mesh import make_mesh, on_mesh
from jaxtrain.params.partition import unflatten
from jaxtrain.runs.folder import read_config
from jaxtrain.weights import import_weights, restore
from jaxtrain.weights.stored import Foreign, of_checkpoint
from tests.conftest import ROOT
from tests.golden.make_keras_vgg import images
from tests.support.inputs import abstract_variables
from tests.support.keras_files import FULL_TOP, GOLDEN, cached_weight, shapes, write

pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')

UNITS, FEATURES = (24, 16, 10), 9 * 512
NEW_HEAD = (('head/.*', 'init'), ('.*', 'load'))


@pytest.fixture(scope='module')
def notop(tmp_path_factory):
    return write(tmp_path_factory.mktemp('file') / 'notop.h5', 'keras1')


@pytest.fixture(scope='module')
def top(tmp_path_factory):
    path = tmp_path_factory.mktemp('file') / 'top.weights.h5'
    return write(path, 'keras3', 16, UNITS, FEATURES)


@pytest.fixture(scope='module')
def imported(top, tmp_path_factory):
    """Return (run directory, message) of the import of the file with a top."""
    out = tmp_path_factory.mktemp('runs') / 'vgg16'
    return out, import_weights.import_weights(str(top), Foreign('keras', 'vgg16'), str(out))


def weights(file, out, model='vgg16') -> str:
    return import_weights.import_weights(str(file), Foreign('keras', model), str(out))


def fault(origin, file, model, out) -> UserError:
    with pytest.raises(UserError) as caught:
        import_weights.import_weights(str(file), Foreign(origin, model), str(out))
    assert '\n' not in str(caught.value)
    return caught.value


def loaded(out, outputs: int, image: tuple, rules=(('.*', 'load'),)):
    """Return the model of a run directory, the leaves that the rules load, and the plan."""
    model = make_model(Config.from_json(read_config(out)['config']).model, outputs)
    params, _ = on_mesh(abstract_variables(model, image), make_mesh())
    plan = restore.make_plan(
        of_checkpoint(checkpoint_list.find(out, 'best', '')), (params, {}), rules
    )
    return model, restore.read(plan, (params, {})), plan


def forward(model, leaves, case, height, width) -> float:
    """Return the relative error of a model on a golden case."""
    expected = np.load(GOLDEN / 'keras_vgg.npz')[case]
    apply = jax.jit(lambda p, x: model.apply({'params': p}, x, train=False))
    output = np.asarray(apply(unflatten(leaves), images(height, width)))
    return float(np.abs(output - expected).max() / np.abs(expected).max())


def test_imported_model_computes_the_same_as_keras(imported):
    model, leaves, _ = loaded(imported[0], 10, (97, 120, 3))
    assert forward(model, leaves, 'vgg16_top_97x120', 97, 120) <= 1e-5


def test_backbone_is_bit_identical_under_a_new_head(notop, tmp_path):
    message = weights(notop, tmp_path / 'out')
    assert 'without a head: 14,714,688 parameters' in message
    _, leaves, plan = loaded(tmp_path / 'out', 3, (64, 64, 3), NEW_HEAD)
    assert all(path.startswith('head/') for path in plan.paths('init'))
    assert set(leaves) == {
        f'backbone/{name}/{part}' for name in convolutions(16) for part in ('kernel', 'bias')
    }
    for path, leaf in leaves.items():
        _, layer, part = path.split('/')
        np.testing.assert_array_equal(leaf, cached_weight(layer, part, leaf.shape), path)
    assert 'data' not in read_config(tmp_path / 'out')
    assert read_config(tmp_path / 'out')['config']['data']['image_size'] == []
    assert checkpoint_list.find(tmp_path / 'out', 'last', '').name == '0'


def test_config_holds_model_preprocessing_and_origin(imported, top):
    stored = read_config(imported[0])
    config, data = stored['config'], stored['config']['data']
    assert (config['regime'], config['task']['name']) == ('full', 'classify')
    assert config['model'] == {
        'name': 'vgg', 'depth': 16, 'hidden': [24, 16], 'dropout': 0.0, 'pool': 0,
        'features': 'flatten', 'widths': [64, 128, 256, 512, 512], 'remat': 'none',
    }  # fmt: skip
    assert (data['scale'], data['channel_order'], data['std']) == (1.0, 'bgr', [1.0])
    assert data['mean'] == [103.939, 116.779, 123.68]
    assert data['image_size'] == [96, 96]
    assert stored['data'] == {
        'classes': [str(i) for i in range(10)], 'shape': [96, 96, 3], 'examples': 0,
    }  # fmt: skip
    assert stored['import'] == {
        'origin': 'keras',
        'model': 'vgg16',
        'files': {'top.weights.h5': hashlib.sha256(top.read_bytes()).hexdigest()},
        'head': 10,
        'dropped': [],
        'assumed': stored['import']['assumed'],
        'fields': {},
        'allowed_fields': [],
    }
    assert 'versions' in stored


def test_message_and_restore_plan(imported):
    out, message = imported
    assert message.startswith('vgg16 of keras, with its head of 10 outputs: 14,8')
    plan = json.loads((out / 'restore.json').read_text())
    lines = {leaf['path']: leaf for leaf in plan['leaves']}
    assert len(lines) == 32
    assert {leaf['action'] for leaf in lines.values()} == {'load'}
    assert lines['backbone/block4_conv1/kernel'] == {
        'path': 'backbone/block4_conv1/kernel',
        'action': 'load',
        'source': 'layers/conv2d_7/vars/0 3x3x256x512 float32',
        'target': '3x3x256x512 float32',
        'key': 'backbone/block4_conv1/kernel',
    }
    assert lines['head/logits/bias']['source'] == 'layers/dense_2/vars/1 10 float32'


def test_1000_outputs_are_the_classes_of_imagenet(tmp_path):
    path = write(tmp_path / 'vgg.h5', 'tf-keras', 16, (2, 2, 1000), 512, value=None)
    weights(path, tmp_path / 'out')
    classes = read_config(tmp_path / 'out')['data']['classes']
    assert (len(set(classes)), classes[0], classes[-1]) == (1000, 'n01440764', 'n15075141')
    assert classes == sorted(classes)


def test_top_with_another_name_has_numbered_classes(tmp_path):
    """Its 1000 classes are unknown; all assumptions are reported."""
    path = write(tmp_path / 'vgg.h5', 'tf-keras3', 16, (2, 2, 1000), 512, value=None)
    message = weights(path, tmp_path / 'out')
    stored = read_config(tmp_path / 'out')
    assert stored['data']['classes'] == [str(i) for i in range(1000)]
    assert len(stored['import']['assumed']) == 4
    assert all(
        f'assumed, since the file does not state it: {t}' in message
        for t in stored['import']['assumed']
    )


def test_one_output_is_a_binary_task(tmp_path):
    path = write(tmp_path / 'vgg.h5', 'tf-keras', 16, (2, 2, 1), 512, value=None)
    weights(path, tmp_path / 'out')
    stored = read_config(tmp_path / 'out')
    assert (stored['config']['task']['name'], stored['data']['classes']) == ('binary', ['0', '1'])


@pytest.mark.parametrize('dtype', ['f2', 'f8'])
def test_other_floats_are_converted_and_reported(dtype, tmp_path):
    path = write(tmp_path / 'vgg.h5', 'keras1', dtype=dtype, value=None)
    assert f'converted to float32 from {np.dtype(dtype)}' in weights(path, tmp_path / 'out')
    _, leaves, _ = loaded(tmp_path / 'out', 3, (32, 32, 3), NEW_HEAD)
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype('f4')}


def test_the_same_import_again_changes_nothing(imported, top):
    out, _ = imported
    before = {p: p.stat().st_mtime_ns for p in out.rglob('*')}
    assert 'holds this import already' in weights(top, out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob('*')} == before


def test_import_with_assumptions_in_other_words_is_the_same(tmp_path):
    path = write(tmp_path / 'vgg.h5', 'tf-keras3', 16, (2, 2, 1000), 512, value=None)
    weights(path, tmp_path / 'out')
    config = tmp_path / 'out' / 'config.json'
    written = json.loads(config.read_text())
    written['import']['assumed'] = [f'earlier: {words}' for words in written['import']['assumed']]
    config.write_text(json.dumps(written))
    assert 'holds this import already' in weights(path, tmp_path / 'out')
    written['import']['assumed'].pop()
    config.write_text(json.dumps(written))
    assert 'holds a run already' in str(fault('keras', path, 'vgg16', tmp_path / 'out'))
    # Imports from before fields were recorded assumed less.
    del written['import']['fields'], written['import']['allowed_fields']
    config.write_text(json.dumps(written))
    assert 'holds this import already' in weights(path, tmp_path / 'out')


def test_folder_in_use_is_not_changed(imported, notop, tmp_path):
    out, _ = imported
    assert 'holds a run already' in str(fault('keras', notop, 'vgg16', out))
    assert list(read_config(out)['import']['files']) == ['top.weights.h5']
    (tmp_path / 'notes.txt').write_text('mine')
    assert 'holds something else already' in str(fault('keras', notop, 'vgg16', tmp_path))
    assert os.listdir(tmp_path) == ['notes.txt']
    assert 'something else' in str(fault('keras', notop, 'vgg16', tmp_path / 'notes.txt'))


def test_empty_folder_is_used(notop, tmp_path):
    weights(notop, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ['checkpoints', 'config.json', 'restore.json']


@pytest.mark.parametrize(
    ('origin', 'model', 'words'),
    [
        (
            'kears',
            'vgg16',
            ["origin 'kears' is not known", "'keras'", 'choose from keras'],
        ),
        (
            'keras',
            'vgg116',
            ["--model 'vgg116'", "'vgg16'", 'vgg16, vgg19'],
        ),
        ('keras', 'resnet50', ['holds vgg16', 'resnet50', '--model=vgg16']),
        ('keras', 'vgg19', ['holds vgg16', 'vgg19', '--model=vgg16']),
    ],
)
def test_wrong_arguments(origin, model, words, notop, tmp_path):
    message = str(fault(origin, notop, model, tmp_path / 'out'))
    assert all(word in message for word in words), message
    assert not list(tmp_path.iterdir())


def replace(address, value):
    def change(file):
        file.pop(address, None)
        file[address] = value

    return change


BIAS = 'block5_conv3/block5_conv3_b_1:0'


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (replace(BIAS, np.full(512, np.nan, 'f4')), f'{BIAS} holds NaN or Inf'),
        (
            replace(BIAS, np.zeros(511, 'f4')),
            f'fit vgg16, first {BIAS}, which is 511',
        ),
        (
            replace(BIAS, np.zeros(512, 'i4')),
            f'fit vgg16, first {BIAS}, which is 512 i',
        ),
        (
            replace('block1_conv1/block1_conv1_W_1:0', np.zeros((64, 3, 3, 3), 'f4')),
            'block1_conv1_W_1:0, which is 64x3x3x3 float32 and should be 3x3x3x64 float; give',
        ),
        (replace('new', np.zeros(3)), 'array new belongs to no layer of VGG'),
    ],
)
def test_failed_import_leaves_nothing(change, words, tmp_path):
    file = write(tmp_path / 'vgg.h5', 'keras1', value=None)
    with h5py.File(file, 'r+') as opened:
        change(opened)
    error = fault('keras', file, 'vgg16', tmp_path / 'runs' / 'out')
    assert words in str(error)
    assert (', should be ' in error.details) == ('do not fit' in str(error))
    assert not (tmp_path / 'runs').exists() or not list((tmp_path / 'runs').iterdir())


@pytest.mark.parametrize('failure', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_interrupted_import_leaves_nothing(failure, notop, tmp_path, monkeypatch):
    def fail(*args, **options):
        assert len(list(tmp_path.iterdir())) == 1  # the temporary folder
        raise failure

    monkeypatch.setattr(ocp.CheckpointManager, 'save', fail)
    with pytest.raises(UserError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        weights(notop, tmp_path / 'out')
    if isinstance(failure, OSError):
        assert 'out cannot be written (No space left on device)' in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_created(notop, tmp_path):
    (tmp_path / 'file').write_text('')
    assert 'cannot be written' in str(fault('keras', notop, 'vgg16', tmp_path / 'file' / 'out'))


PEAK = """
import os, resource, sys
import jax.numpy as jnp
from jaxtrain.weights.import_weights import import_weights
from jaxtrain.weights.stored import Foreign
jnp.zeros(1).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import_weights(sys.argv[1], Foreign('keras', sys.argv[2]), sys.argv[3])
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown * 1024 / os.path.getsize(sys.argv[1]))
"""


@pytest.mark.slow
def test_full_size_vgg(tmp_path):
    """Peak memory is at most 1.3 times the size of the file, and outputs equal those of Keras."""
    file = write(tmp_path / 'vgg.h5', 'keras1', 16, FULL_TOP)
    words = [sys.executable, '-c', PEAK, str(file), 'vgg16', str(tmp_path / 'out')]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(done.stdout.split()[-1]) <= 1.3
    model, leaves, _ = loaded(tmp_path / 'out', 1000, (224, 224, 3))
    assert len(leaves) == len(shapes(16, FULL_TOP))
    assert forward(model, leaves, 'vgg16_top_224', 224, 224) <= 1e-5
