"""Foreign weights: from the file to a run, and errors for invalid files."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from jaxtrain.checkpoints import checkpoint_list
from jaxtrain.config.files import load
from jaxtrain.errors import UserError
from jaxtrain.inference.export_weights import export_weights
from jaxtrain.loop.announce import describe
from jaxtrain.loop.job import first_state, make_job
from jaxtrain.runs.folder import RunDir, read_config
from jaxtrain.terminal import Terminal
from jaxtrain.weights import restore
from jaxtrain.weights.import_weights import import_weights
from jaxtrain.weights.origins import timm
from jaxtrain.weights.stored import Foreign
from tests.support.foreign_files import arrays, write

pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')

CONFIG = """
from jaxtrain.config import base


def get_config():
    c = base()
    c.regime = 'finetune'
    c.data.source = 'npz'
    c.data.path = '{data}'
    c.data.image_size = (32, 32)
    c.batch_size = 8
    c.steps = 2
    c.model.name = ''
    c.restore.rules = (('head/.*', 'init'), ('.*', 'load'))
    return c
"""


@pytest.fixture(scope='module')
def weights():
    """Return the arrays of a ViT-Ti/16 for 32x32 RGB images and four classes."""
    return arrays(timm, 'vit_ti16', 4, (32, 32, 3))


@pytest.fixture(scope='module')
def file(weights, tmp_path_factory):
    return write(tmp_path_factory.mktemp('weights') / 'model.safetensors', weights)


@pytest.fixture(scope='module')
def imported(file, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs') / 'vit'
    return out, import_weights(str(file), Foreign('timm', 'vit_ti16'), str(out))


@pytest.fixture(scope='module')
def coloured(tmp_path_factory):
    """Return a folder with splits of RGB images, the digits of scikit-learn."""
    folder = tmp_path_factory.mktemp('coloured')
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None].repeat(3, -1)
    for number, split in enumerate(('train', 'val', 'test')):
        rows = slice(100 * number, 100 * number + 100)
        np.savez(folder / f'{split}.npz', image=images[rows], label=digits.target[rows])
    return folder


@pytest.fixture
def config(tmp_path, coloured):
    (tmp_path / 'config.py').write_text(CONFIG.format(data=coloured))

    def make(*words: str):
        return load(str(tmp_path / 'config.py'), [f'--config.{word}' for word in words])

    return make


def fault(origin, file, model, out, **more) -> str:
    with pytest.raises(UserError) as caught:
        import_weights(str(file), Foreign(origin, model), str(out), **more)
    assert '\n' not in str(caught.value)
    assert not out.exists() or not any(out.iterdir())
    assert not list(out.parent.glob(f'.{out.name}*'))
    return str(caught.value)


def spoiled(tmp_path, weights, **changes):
    """Write the file with some arrays changed, or removed if None."""
    arrays = {**weights, **changes}
    return write(tmp_path / 'f.safetensors', {k: v for k, v in arrays.items() if v is not None})


def test_import_writes_a_complete_run_directory(imported, weights):
    out, message = imported
    stored = read_config(out)
    assert stored['config']['model']['name'] == 'vit'
    assert stored['config']['model']['width'] == 192
    assert stored['config']['data']['image_size'] == [32, 32]
    assert stored['config']['data']['mean'] == [0.5]
    assert stored['data']['classes'] == ['0', '1', '2', '3']
    assert stored['import']['origin'] == 'timm'
    assert list(stored['import']['files']) == ['model.safetensors']
    assert len(stored['import']['files']['model.safetensors']) == 64
    plan = json.loads((out / 'restore.json').read_text())
    assert {leaf['action'] for leaf in plan['leaves']} == {'load'}
    named = {leaf['source'].split()[0] for leaf in plan['leaves']}
    assert named == set(weights)
    assert 'vit_ti16 of timm, with its head of 4 outputs' in message


def test_arrays_are_converted_and_renamed(imported, weights):
    leaves = {leaf.path: leaf for leaf in plan_of(imported[0]).leaves}
    assert leaves['backbone/block_3/mlp/up/kernel'].action == 'load'
    values = everything(imported[0])
    up = weights['blocks.3.mlp.fc1.weight']
    np.testing.assert_array_equal(values['backbone/block_3/mlp/up/kernel'], up.T)
    qkv = weights['blocks.3.attn.qkv.weight'].reshape(3, 3, 64, 192)
    key = values['backbone/block_3/attention/key/kernel']
    np.testing.assert_array_equal(key, qkv[1].transpose(2, 0, 1))


def plan_of(workdir) -> restore.Plan:
    from jaxtrain.config import Config
    from jaxtrain.models import make_model
    from jaxtrain.parallel.mesh import make_mesh, on_mesh
    from jaxtrain.weights.bundle import of_run
    from jaxtrain.weights.stored import of_checkpoint
    from tests.support.inputs import abstract_variables

    stored = of_checkpoint(checkpoint_list.find(workdir, 'last', ''), of_run(workdir))
    config = Config.from_json(read_config(workdir)['config'])
    variables = abstract_variables(make_model(config.model, 4), (32, 32, 3))
    variables = on_mesh(variables, make_mesh())
    return restore.make_plan(stored, variables, (('.*', 'load'),))


def everything(workdir) -> dict[str, np.ndarray]:
    from jaxtrain.parallel.mesh import make_mesh, on_mesh

    stored = plan_of(workdir).stored
    return stored.read(on_mesh(dict(stored.leaves), make_mesh()))


def test_export_returns_the_original_arrays(imported, weights, tmp_path):
    target = tmp_path / 'again.safetensors'
    message = export_weights(str(imported[0]), 'last', 'timm', str(target))
    assert message.startswith(f'{len(weights)} arrays of vit in')
    exported = load_file(target)
    assert set(exported) == set(weights)
    for key, value in weights.items():
        np.testing.assert_array_equal(exported[key], value, key)


def test_a_run_starts_from_a_run_directory_or_a_file(imported, file, config):
    """Both have the same initial parameters, preprocessing and model."""
    one = make_job(config(f'init_from={imported[0]}'))
    origin = ('restore.origin=timm', 'restore.model=vit_ti16')
    other = make_job(config(f'init_from={file}', *origin))
    assert one.config['model'] == other.config['model']
    assert one.config['data'] == other.config['data']
    first, second = first_state(one, 0), first_state(other, 0)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert first.params['head']['logits']['kernel'].shape == (192, 10)


def test_a_run_that_starts_from_a_file_prints_what_is_assumed(file, config, tmp_path, capsys):
    job = make_job(config(f'init_from={file}', 'restore.origin=timm', 'restore.model=vit_ti16'))
    session = SimpleNamespace(
        folder=RunDir(tmp_path), terminal=Terminal(), clock=SimpleNamespace(step=0)
    )
    describe(job, session)
    (line,) = [t for t in capsys.readouterr().out.splitlines() if 'assumed' in t]
    assert 'global_pool=token' in line and 'num_heads=3' in line and 'architecture' in line


def test_a_rule_resizes_positions(imported, config):
    rules = "restore.rules=(('head/.*','init'),('backbone/position','resize'),('.*','load'))"
    job = make_job(config(f'init_from={imported[0]}', 'data.image_size=(48,64)', rules))
    assert job.start.plan.paths('resize') == ['backbone/position']
    state = first_state(job, 0)
    assert state.params['backbone']['position'].shape == (3, 4, 192)
    with pytest.raises(UserError) as caught:
        make_job(config(f'init_from={imported[0]}', 'data.image_size=(48,64)'))
    assert "add the rule ('backbone/position', 'resize')" in str(caught.value)


def test_classes_are_taken_by_name(imported, config):
    """The digits are named 0 to 9, and the four outputs of the file 0 to 3."""
    rules = "restore.rules=(('head/.*','classes'),('.*','load'))"
    job = make_job(config(f'init_from={imported[0]}', rules))
    assert '4 classes by name (0, 1, 2 ...)' in job.start.plan.summary()
    kernel = np.asarray(first_state(job, 0).params['head']['logits']['kernel'])
    stored = np.asarray(everything(imported[0])['head/logits/kernel'])
    np.testing.assert_array_equal(kernel[:, :4], stored)
    fresh = make_job(config(f'init_from={imported[0]}'))
    other = np.asarray(first_state(fresh, 0).params['head']['logits']['kernel'])
    np.testing.assert_array_equal(kernel[:, 4:], other[:, 4:])


def test_inspect_lists_what_fine_tuning_loads(imported, config, jaxtrain, tmp_path):
    outcome = jaxtrain(
        'inspect', f'--config={tmp_path}/config.py', f'--config.init_from={imported[0]}'
    )
    assert outcome.code == 0, outcome.err
    assert 'load' in outcome.out and 'head/logits/kernel' in outcome.out


def test_a_file_needs_its_origin(file, config):
    with pytest.raises(UserError, match='is a file; name its origin'):
        make_job(config(f'init_from={file}'))


def test_the_same_import_again_does_nothing(imported, file):
    assert 'nothing is done' in import_weights(
        str(file), Foreign('timm', 'vit_ti16'), str(imported[0])
    )


# Errors.


def test_unknown_origin_or_model(file, tmp_path):
    message = fault('tim', file, 'vit_ti16', tmp_path / 'o')
    assert "origin 'tim'" in message and "'timm'" in message
    message = fault('timm', file, 'vit_ti61', tmp_path / 'o')
    assert "--model 'vit_ti61'" in message and "'vit_ti16'" in message


def test_wrong_model_size(file, tmp_path):
    message = fault('timm', file, 'vit_s16', tmp_path / 'o')
    for part in (str(file), 'holds vit_ti16', 'vit_s16', '--model=vit_ti16'):
        assert part in message, message


def test_truncated(file, tmp_path):
    short = tmp_path / 'short.safetensors'
    short.write_bytes(file.read_bytes()[:-1000])
    assert str(short) in fault('timm', short, 'vit_ti16', tmp_path / 'o')


def test_missing_key(weights, tmp_path):
    file = spoiled(tmp_path, weights, **{'blocks.2.norm1.weight': None})
    message = fault('timm', file, 'vit_ti16', tmp_path / 'o')
    assert '1 of' in message and 'first blocks.2.norm1.weight' in message and 'missing' in message


def test_misspelt_key(weights, tmp_path):
    value = weights['blocks.2.norm1.weight']
    changes = {'blocks.2.norm1.weight': None, 'blocks.2.norm_1.weight': value}
    message = fault('timm', spoiled(tmp_path, weights, **changes), 'vit_ti16', tmp_path / 'o')
    assert "'blocks.2.norm_1.weight'" in message


def test_unknown_key_and_how_to_drop_it(weights, tmp_path):
    file = spoiled(tmp_path, weights, extra=np.ones(3, 'f4'))
    message = fault('timm', file, 'vit_ti16', tmp_path / 'o')
    assert "1 of its keys are not part of the model, first 'extra'" in message
    assert "--drop='extra'" in message
    import_weights(str(file), Foreign('timm', 'vit_ti16'), str(tmp_path / 'o'), drop=['ext.*'])
    plan = json.loads((tmp_path / 'o' / 'restore.json').read_text())
    assert [leaf['path'] for leaf in plan['leaves'] if leaf['action'] == 'drop'] == ['extra']


def test_drop_without_a_match(file, tmp_path):
    message = fault('timm', file, 'vit_ti16', tmp_path / 'o', drop=['extra'])
    assert "--drop='extra' matches none of the keys that are left over" in message


def test_wrong_dtype(weights, tmp_path):
    key = 'blocks.1.mlp.fc1.bias'
    file = spoiled(tmp_path, weights, **{key: weights[key].astype(np.int32)})
    message = fault('timm', file, 'vit_ti16', tmp_path / 'o')
    assert key in message and 'int32' in message


def test_half_precision_is_converted_and_reported(weights, tmp_path):
    file = spoiled(tmp_path, {k: v.astype(np.float16) for k, v in weights.items()})
    message = import_weights(str(file), Foreign('timm', 'vit_ti16'), str(tmp_path / 'o'))
    assert 'converted to float32 from float16' in message


def test_wrong_shape(weights, tmp_path):
    key = 'blocks.1.mlp.fc1.bias'
    file = spoiled(tmp_path, weights, **{key: weights[key][:5]})
    message = fault('timm', file, 'vit_ti16', tmp_path / 'o')
    assert f'first {key}, which is 5 float32 and should be 768' in message


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_nonfinite_values(weights, tmp_path, value):
    key = 'blocks.1.mlp.fc1.bias'
    bad = weights[key].copy()
    bad[7] = value
    message = fault('timm', spoiled(tmp_path, weights, **{key: bad}), 'vit_ti16', tmp_path / 'o')
    assert f'{key} holds NaN or Inf' in message


def test_folder_without_weights_or_with_two_files(file, tmp_path):
    folder = tmp_path / 'weights'
    folder.mkdir()
    assert str(folder) in fault('timm', folder, 'vit_ti16', tmp_path / 'o')
    for name in ('a.safetensors', 'b.safetensors'):
        (folder / name).write_bytes(file.read_bytes())
    message = fault('timm', folder, 'vit_ti16', tmp_path / 'o')
    assert 'a.safetensors' in message and 'b.safetensors' in message
