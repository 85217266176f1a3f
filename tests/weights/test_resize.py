"""Arrays for another size: against timm, then through the plan, then through a run."""

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
    found = np.asarray(function(jnp.asarray(golden.array(kind, case, shape)), wanted))
    reference = expected[f'{kind}/{case}']
    assert (found.shape, found.dtype) == (reference.shape, reference.dtype)
    assert np.abs(found - reference).max() <= 3e-6 * np.abs(reference).max()


def test_a_patch_embeds_alike_before_and_after():
    """What the pseudo-inverse is for: a patch twice as large, under the kernel resized to it."""
    kernel = golden.array('patches', 'up', (4, 4, 3, 2))
    patch = golden.array('patch', '', (4, 4, 3))
    larger = jax.image.resize(patch, (8, 8, 3), 'bicubic')
    resized = np.asarray(resize.patches(jnp.asarray(kernel), (8, 8)))
    before = np.einsum('hwc,hwcd->d', patch, kernel)
    np.testing.assert_allclose(np.einsum('hwc,hwcd->d', larger, resized), before, atol=1e-4)


# What can be resized, through the plan.


def stored(shapes: dict[str, tuple], classes: tuple[str, ...] = (), dtype=jnp.float32) -> Stored:
    """Weights in memory."""
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
    return restore.make_plan(stored(have, classes[0]), target(want), {}, rules, classes[1])


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
    found = restore.read(plan, target({path: want}), {})[path]
    whole = golden.array('stored', path, have)
    np.testing.assert_array_equal(found, resize.resize(path, jnp.asarray(whole), want))
    assert found.shape == want and found.sharding == target({'x': (1,)})['x'].sharding


@pytest.mark.parametrize('path, have, want', RESIZED)
def test_without_the_rule_it_is_named(path, have, want):
    with pytest.raises(UserError) as caught:
        planned({path: have}, {path: want}, 'load')
    assert f"add the rule ('{path}', 'resize') in front of config.restore.rules" in str(
        caught.value
    )


@pytest.mark.parametrize(
    'path, have, want',
    [
        ('backbone/position', (4, 4, 6), (6, 6, 8)),  # another width
        ('backbone/positions/embedding', (7, 6), (10, 6)),  # more than there are
        ('backbone/positions/embedding', (10, 6), (7, 8)),
        ('backbone/patch/kernel', (4, 4, 1, 6), (4, 4, 3, 6)),  # colours out of grey
        ('backbone/patch/kernel', (4, 4, 3, 6), (4, 4, 3, 8)),
        ('backbone/conv_0/kernel', (7, 7, 3, 6), (3, 3, 3, 6)),
        ('backbone/conv_0/kernel', (7, 7, 3, 6), (7, 7, 1, 8)),
        ('backbone/conv_1/kernel', (3, 3, 8, 6), (3, 3, 4, 6)),  # not the first
        ('backbone/class_position', (1, 6), (5, 6)),
        ('backbone/dense/kernel', (3, 6), (1, 6)),
        ('backbone/norm/scale', (6,), (8,)),
    ],
)
def test_what_cannot_be_resized_is_refused(path, have, want):
    with pytest.raises(UserError) as caught:
        planned({path: have}, {path: want}, 'resize')
    said = str(caught.value)
    assert '\n' not in said and f'first {path} (CANNOT BE RESIZED: ' in said
    assert 'add the rule' not in said


def test_another_dtype_is_not_resized():
    """Though the shape could be: what is stored is never converted without a word."""
    path = 'backbone/position'
    weights = stored({path: (4, 4, 6)}, dtype=jnp.bfloat16)
    for shape in ((4, 4, 6), (6, 6, 6)):
        with pytest.raises(UserError, match='DIFFERS: 4x4x6 bfloat16 -> ') as caught:
            restore.make_plan(weights, target({path: shape}), {}, ((path, 'resize'),))
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
def test_outputs_of_the_same_name(ours, places):
    """Some of the classes, all in another order, one; the others are fresh."""
    count = len(ours)
    want = {'head/logits/kernel': (6, count), 'head/logits/bias': (count,)}
    plan = planned(HEAD, want, 'classes', (THREE, ours))
    assert plan.classes == tuple((ours[i], i, j) for i, j in places.items())
    fresh = {p: jnp.full(shape, 9.0) for p, shape in want.items()}
    found = restore.with_classes(plan, fresh)
    for path, shape in HEAD.items():
        theirs = golden.array('stored', path, shape)
        for i in range(count):
            column = theirs[..., places[i]] if i in places else np.full(shape[:-1], 9.0)
            np.testing.assert_array_equal(np.asarray(found[path])[..., i], column)
    assert f'{len(places)} classes by name ({", ".join(ours[i] for i in places)})' in plan.summary()
    assert plan.to_json()['classes'] == [ours[i] for i in places]


def test_no_output_of_the_same_name():
    want = {'head/logits/kernel': (6, 2), 'head/logits/bias': (2,)}
    with pytest.raises(UserError) as caught:
        planned(HEAD, want, 'classes', (THREE, ('dog', 'eel')))
    said = str(caught.value)
    assert said.startswith("config.restore.rules: 'classes' ") and "'init'" in said
    assert '(dog, eel)' in said and 'somewhere (ape, bee, cat)' in said


@pytest.mark.parametrize('kernel', [(6, 4), (7, 3)])
def test_a_head_that_is_not_one_output_per_class(kernel):
    have = {**HEAD, 'head/logits/kernel': kernel}
    with pytest.raises(UserError, match='its head differs .head/logits/kernel: '):
        planned(have, HEAD, 'classes', (THREE, THREE))


# Through a run.

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
    """A file for images of three channels, without a head where that would be large."""
    module, _, model, *_ = FIRST[kind]
    found = arrays(module, model, 0 if kind == 'vgg' else 4, (32, 32, 3))
    return write(tmp_path / f'{kind}.safetensors', found), found


@pytest.mark.parametrize('kind', FIRST)
def test_a_run_on_grey_images_starts_from_weights_for_colours(kind, tmp_path):
    file, found = coloured(kind, tmp_path)
    _, origin, model, theirs, ours = FIRST[kind]
    (tmp_path / 'config.py').write_text(CONFIG)
    words = [f'init_from={file}', f'restore.origin={origin}', f'restore.model={model}']
    words = [f'--config.{word}' for word in (*words, 'model.hidden=()' if kind == 'vgg' else '')]
    words = [word for word in words if word != '--config.']
    with pytest.raises(UserError, match=f"add the rule .'{ours}', 'resize'. in front of"):
        make_job(load(str(tmp_path / 'config.py'), words))
    rules = f"--config.restore.rules=(('head/.*','init'),('{ours}','resize'),('.*','load'))"
    job = make_job(load(str(tmp_path / 'config.py'), [*words, rules]))
    assert job.start.plan.paths('resize') == [ours]
    kernel = np.asarray(flatten(first_state(job, 0).params)[ours])
    grey = found[theirs].transpose(2, 3, 1, 0).sum(2, keepdims=True)
    np.testing.assert_allclose(kernel, grey, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('kind', FIRST)
def test_a_fourth_channel(kind, tmp_path):
    """Data sets have one or three, models any number."""
    file, found = coloured(kind, tmp_path)
    _, origin, model, theirs, ours = FIRST[kind]
    weights = of_file(origin, file, model)
    whole = {p: leaf.shape for p, leaf in weights.leaves.items() if p.startswith('backbone/')}
    *sides, _, width = whole[ours]
    want = {ours: (*sides, 4, width)}
    rules = ((ours, 'resize'), ('.*', 'drop'))
    plan = restore.make_plan(weights, target(want), {}, rules)
    kernel = np.asarray(restore.read(plan, target(want), {})[ours])
    colours = found[theirs].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(kernel, colours[:, :, [0, 1, 2, 0]] * 0.75, rtol=1e-6)


def test_a_run_on_an_oblong_grid_of_positions(tmp_path):
    """32x48 pixels are 2x3 patches; the class token's position is as it was."""
    file, found = coloured('vit', tmp_path)
    (tmp_path / 'config.py').write_text(CONFIG)
    rules = (
        "(('head/.*','init'),('backbone/position','resize'),('backbone/patch/kernel','resize'),"
        "('.*','load'))"
    )
    words = ['data.image_size=(32,48)', f'init_from={file}', 'restore.origin=timm',
             'restore.model=vit_ti16', f'restore.rules={rules}']  # fmt: skip
    job = make_job(load(str(tmp_path / 'config.py'), [f'--config.{word}' for word in words]))
    state = flatten(first_state(job, 0).params)
    theirs = found['pos_embed'][0]
    np.testing.assert_array_equal(state['backbone/class_position'], theirs[:1])
    grid = resize.positions(jnp.asarray(theirs[1:].reshape(2, 2, -1)), (2, 3))
    np.testing.assert_array_equal(state['backbone/position'], grid)
