"""Resizing of arrays: compared with timm, in the restore plan, and in a run."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.config.files import load
from jaxtrain.errors import UserError
from jaxtrain.loop.job import first_state, make_job
from jaxtrain.parallel.mesh import make_mesh, on_mesh
from jaxtrain.params.partition import flatten, unflatten
from jaxtrain.weights import resize, restore
from jaxtrain.weights.bundle import Bundle
from jaxtrain.weights.origins import timm, torchvision
from jaxtrain.weights.stored import Stored, of_file
from tests.golden import make_resize as golden
from tests.support.foreign_files import arrays, write

CASES = {
    'positions': (golden.POSITIONS, resize.positions),
    'patches': (golden.PATCHES, resize.patches),
    'channels': (golden.CHANNELS, resize.channels),
}


@pytest.fixture(scope='module')
def expected():
    return dict(np.load(golden.HERE / 'resize.npz'))


@pytest.mark.parametrize('kind, case', [(k, c) for k, (table, _) in CASES.items() for c in table])
def test_the_same_numbers_as_timm(kind, case, expected):
    table, function = CASES[kind]
    shape, wanted = table[case]
    result = np.asarray(function(jnp.asarray(golden.array(kind, case, shape)), wanted))
    reference = expected[f'{kind}/{case}']
    assert (result.shape, result.dtype) == (reference.shape, reference.dtype)
    assert np.abs(result - reference).max() <= 3e-6 * np.abs(reference).max()


def test_resized_patches_keep_their_embedding():
    """The pseudo-inverse ensures it: a patch twice as large, with the kernel resized to it."""
    kernel = golden.array('patches', 'up', (4, 4, 3, 2))
    patch = golden.array('patch', '', (4, 4, 3))
    larger = jax.image.resize(patch, (8, 8, 3), 'bicubic')
    resized = np.asarray(resize.patches(jnp.asarray(kernel), (8, 8)))
    before = np.einsum('hwc,hwcd->d', patch, kernel)
    np.testing.assert_allclose(np.einsum('hwc,hwcd->d', larger, resized), before, atol=1e-4)


# The restore plan.


def stored(shapes: dict[str, tuple], classes: tuple[str, ...] = (), dtype=jnp.float32) -> Stored:
    """Return weights in memory."""
    values = {path: golden.array('stored', path, shape) for path, shape in shapes.items()}
    leaves = {p: jax.ShapeDtypeStruct(v.shape, dtype) for p, v in values.items()}
    return Stored(
        'somewhere', leaves, {}, lambda wanted: {p: jnp.asarray(values[p]) for p in wanted},
        Bundle('somewhere', {}, {}, classes),
    )  # fmt: skip


def target(shapes: dict[str, tuple]):
    leaves = {p: jax.ShapeDtypeStruct(shape, jnp.float32) for p, shape in shapes.items()}
    return on_mesh(unflatten(leaves), make_mesh())


def planned(have: dict, want: dict, action: str, classes=((), ())) -> restore.Plan:
    rules = (*((path, action) for path in want), ('.*', 'load'))
    return restore.make_plan(stored(have, classes[0]), (target(want), {}), rules, classes[1])


RESIZED = [
    ('backbone/position', (4, 4, 6), (6, 3, 6)),
    ('backbone/position', (3, 5, 6), (4, 4, 6)),
    ('backbone/positions/embedding', (10, 6), (7, 6)),
    ('backbone/patch/kernel', (4, 4, 3, 6), (8, 8, 3, 6)),
    ('backbone/patch/kernel', (4, 4, 3, 6), (4, 4, 1, 6)),
    ('backbone/patch/kernel', (4, 4, 3, 6), (8, 2, 4, 6)),
    ('backbone/conv_0/kernel', (7, 7, 3, 6), (7, 7, 1, 6)),
    ('backbone/conv_0/kernel', (7, 7, 3, 6), (7, 7, 4, 6)),
]


@pytest.mark.parametrize('path, have, want', RESIZED)
def test_a_rule_resizes(path, have, want):
    plan = planned({path: have}, {path: want}, 'resize')
    texts = ['x'.join(map(str, shape)) + ' float32' for shape in (have, want)]
    assert plan.leaves == (restore.Leaf(path, 'resize', *texts, path),)
    assert 'resize 1 (backbone)' in plan.summary()
    result = restore.read(plan, (target({path: want}), {}))[path]
    whole = golden.array('stored', path, have)
    np.testing.assert_array_equal(result, resize.resize(path, jnp.asarray(whole), want))
    assert result.shape == want and result.sharding == target({'x': (1,)})['x'].sharding


@pytest.mark.parametrize('path, have, want', RESIZED)
def test_the_missing_rule_is_named(path, have, want):
    with pytest.raises(UserError) as caught:
        planned({path: have}, {path: want}, 'load')
    assert f"add the rule ('{path}', 'resize') in front of config.restore.rules" in str(
        caught.value
    )


@pytest.mark.parametrize(
    'path, have, want',
    [
        ('backbone/position', (4, 4, 6), (6, 6, 8)),  # another width
        ('backbone/positions/embedding', (7, 6), (10, 6)),  # more positions than the file has
        ('backbone/positions/embedding', (10, 6), (7, 8)),
        ('backbone/patch/kernel', (4, 4, 1, 6), (4, 4, 3, 6)),  # RGB from grey
        ('backbone/patch/kernel', (4, 4, 3, 6), (4, 4, 3, 8)),
        ('backbone/conv_0/kernel', (7, 7, 3, 6), (3, 3, 3, 6)),
        ('backbone/conv_0/kernel', (7, 7, 3, 6), (7, 7, 1, 8)),
        ('backbone/conv_1/kernel', (3, 3, 8, 6), (3, 3, 4, 6)),  # not the first convolution
        ('backbone/class_position', (1, 6), (5, 6)),
        ('backbone/dense/kernel', (3, 6), (1, 6)),
        ('backbone/norm/scale', (6,), (8,)),
    ],
)
def test_impossible_resize_is_refused(path, have, want):
    with pytest.raises(UserError) as caught:
        planned({path: have}, {path: want}, 'resize')
    message = str(caught.value)
    assert '\n' not in message and f'first {path} (CANNOT BE RESIZED: ' in message
    assert 'add the rule' not in message


def test_another_dtype_is_not_resized():
    """The shape could be, but stored dtypes are never converted silently."""
    path = 'backbone/position'
    weights = stored({path: (4, 4, 6)}, dtype=jnp.bfloat16)
    for shape in ((4, 4, 6), (6, 6, 6)):
        with pytest.raises(UserError, match='DIFFERS: 4x4x6 bfloat16 -> ') as caught:
            restore.make_plan(weights, (target({path: shape}), {}), ((path, 'resize'),))
        assert 'add the rule' not in str(caught.value)


# Heads by class name.

HEAD = {'head/logits/kernel': (6, 3), 'head/logits/bias': (3,)}
THREE = ('ape', 'bee', 'cat')


@pytest.mark.parametrize(
    'ours, places',
    [
        (('cat', 'dog', 'ape', 'eel'), {0: 2, 2: 0}),
        (('cat', 'ape', 'bee'), {0: 2, 1: 0, 2: 1}),
        (('bee', 'dog'), {0: 1}),
    ],
)
def test_outputs_are_matched_by_class_name(ours, places):
    """Cases: some classes, all in another order, and one; the others are initialized."""
    count = len(ours)
    want = {'head/logits/kernel': (6, count), 'head/logits/bias': (count,)}
    plan = planned(HEAD, want, 'classes', (THREE, ours))
    assert plan.classes == tuple((ours[i], i, j) for i, j in places.items())
    fresh = {p: jnp.full(shape, 9.0) for p, shape in want.items()}
    result = restore.with_classes(plan, fresh)
    for path, shape in HEAD.items():
        source = golden.array('stored', path, shape)
        for i in range(count):
            column = source[..., places[i]] if i in places else np.full(shape[:-1], 9.0)
            np.testing.assert_array_equal(np.asarray(result[path])[..., i], column)
    assert f'{len(places)} classes by name ({", ".join(ours[i] for i in places)})' in plan.summary()
    assert plan.to_json()['classes'] == [ours[i] for i in places]


def test_no_class_name_in_common():
    want = {'head/logits/kernel': (6, 2), 'head/logits/bias': (2,)}
    with pytest.raises(UserError) as caught:
        planned(HEAD, want, 'classes', (THREE, ('dog', 'eel')))
    message = str(caught.value)
    assert message.startswith("config.restore.rules: 'classes' ") and "'init'" in message
    assert '(dog, eel)' in message and 'somewhere (ape, bee, cat)' in message


@pytest.mark.parametrize('kernel', [(6, 4), (7, 3)])
def test_a_head_that_is_not_one_output_per_class(kernel):
    have = {**HEAD, 'head/logits/kernel': kernel}
    with pytest.raises(UserError, match='its head differs .head/logits/kernel: '):
        planned(have, HEAD, 'classes', (THREE, THREE))


# Runs.

CONFIG = """
from jaxtrain.config import base


def get_config():
    c = base()
    c.regime = 'finetune'
    c.data.name = 'digits'
    c.data.image_size = (32, 32)
    c.data.limit = 5
    c.batch_size = 8
    c.steps = 2
    c.model.name = ''
    c.restore.settings = 'config'
    c.restore.rules = (('head/.*', 'init'), ('.*', 'load'))
    return c
"""
FIRST = {
    'vit': (timm, 'timm', 'vit_ti16', 'patch_embed.proj.weight', 'backbone/patch/kernel'),
    'resnet': (torchvision, 'torchvision', 'resnet18', 'conv1.weight', 'backbone/conv_0/kernel'),
    'vgg': (
        torchvision, 'torchvision', 'vgg11', 'features.0.weight', 'backbone/block1_conv1/kernel',
    ),
}  # fmt: skip


def coloured(kind: str, tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Return a file for RGB images and its arrays, without a head if it would be large."""
    module, _, model, *_ = FIRST[kind]
    foreign = arrays(module, model, 0 if kind == 'vgg' else 4, (32, 32, 3))
    return write(tmp_path / f'{kind}.safetensors', foreign), foreign


@pytest.mark.parametrize(
    'kind', [pytest.param(kind, marks=[pytest.mark.slow] * (kind != 'vgg')) for kind in FIRST]
)
def test_run_on_grey_images_starts_from_rgb_weights(kind, tmp_path):
    file, foreign = coloured(kind, tmp_path)
    _, origin, model, source, path = FIRST[kind]
    (tmp_path / 'config.py').write_text(CONFIG)
    words = [f'init_from={file}', f'restore.origin={origin}', f'restore.model={model}']
    words = [f'--config.{word}' for word in (*words, 'model.hidden=()' if kind == 'vgg' else '')]
    words = [word for word in words if word != '--config.']
    with pytest.raises(UserError, match=f"add the rule .'{path}', 'resize'. in front of"):
        make_job(load(str(tmp_path / 'config.py'), words))
    rules = f"--config.restore.rules=(('head/.*','init'),('{path}','resize'),('.*','load'))"
    job = make_job(load(str(tmp_path / 'config.py'), [*words, rules]))
    assert job.start.plan.paths('resize') == [path]
    kernel = np.asarray(flatten(first_state(job, 0).params)[path])
    grey = foreign[source].transpose(2, 3, 1, 0).sum(2, keepdims=True)
    np.testing.assert_allclose(kernel, grey, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('kind', FIRST)
def test_a_fourth_channel(kind, tmp_path):
    """Data sets have one or three channels, models any number."""
    file, foreign = coloured(kind, tmp_path)
    _, origin, model, source, path = FIRST[kind]
    weights = of_file(origin, file, model)
    whole = {p: leaf.shape for p, leaf in weights.leaves.items() if p.startswith('backbone/')}
    *sides, _, width = whole[path]
    want = {path: (*sides, 4, width)}
    rules = ((path, 'resize'), ('.*', 'drop'))
    plan = restore.make_plan(weights, (target(want), {}), rules)
    kernel = np.asarray(restore.read(plan, (target(want), {}))[path])
    colours = foreign[source].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(kernel, colours[:, :, [0, 1, 2, 0]] * 0.75, rtol=1e-6)


def test_run_on_a_rectangular_grid_of_positions(tmp_path):
    """32x48 pixels are 2x3 patches; the position of the class token does not change."""
    file, foreign = coloured('vit', tmp_path)
    (tmp_path / 'config.py').write_text(CONFIG)
    rules = (
        "(('head/.*','init'),('backbone/position','resize'),('backbone/patch/kernel','resize'),"
        "('.*','load'))"
    )
    words = ['data.image_size=(32,48)', f'init_from={file}', 'restore.origin=timm',
             'restore.model=vit_ti16', f'restore.rules={rules}']  # fmt: skip
    job = make_job(load(str(tmp_path / 'config.py'), [f'--config.{word}' for word in words]))
    state = flatten(first_state(job, 0).params)
    embeddings = foreign['pos_embed'][0]
    np.testing.assert_array_equal(state['backbone/class_position'], embeddings[:1])
    grid = resize.positions(jnp.asarray(embeddings[1:].reshape(2, 2, -1)), (2, 3))
    np.testing.assert_array_equal(state['backbone/position'], grid)
