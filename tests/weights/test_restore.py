"""The restore plan: every leaf is loaded, initialized or dropped, and nothing happens silently."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxtrain.checkpoints import checkpoint, checkpoint_list
from jaxtrain.config.files import load
from jaxtrain.errors import UserError
from jaxtrain.loop.job import first_state, make_job
from jaxtrain.parallel.mesh import make_mesh, on_mesh
from jaxtrain.params.partition import by_path, flatten, from_paths, unflatten
from jaxtrain.step.state import TrainState
from jaxtrain.weights import restore
from jaxtrain.weights.stored import of_checkpoint
from tests.conftest import TINY

pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')

PARAMS = {
    'backbone/conv/kernel': (3, 2),
    'backbone/norm/scale': (2,),
    'head/logits/kernel': (2, 5),
}
STATS = {'batch_stats/backbone/norm/mean': (2,), 'batch_stats/backbone/norm/var': (2,)}
NEW_HEAD = (('head/.*', 'init'), ('.*', 'load'))
ALL = (('.*', 'load'),)


def tree(shapes: dict[str, tuple], start: float = 1.0) -> dict:
    """Return nested arrays of distinct numbers."""
    return unflatten(
        {
            path: jnp.arange(start, start + np.prod(shape)).reshape(shape) / 7 + number
            for number, (path, shape) in enumerate(shapes.items())
        }
    )


def abstract(shapes: dict[str, tuple], dtypes: dict = {}) -> dict:  # noqa: B006
    leaves = {
        path: jax.ShapeDtypeStruct(shape, dtypes.get(path, jnp.float32))
        for path, shape in shapes.items()
    }
    return on_mesh(unflatten(leaves), make_mesh())


def save(workdir: Path, params: dict, model_state: dict, ema: dict | None = None) -> Path:
    """Write a checkpoint as `train` does, and return its folder."""
    state = TrainState(
        step=jnp.int32(1), seed=jnp.uint32(0), params=params, model_state=model_state,
        opt_state={}, ema=ema or {},
    )  # fmt: skip
    with checkpoint.open_manager(workdir, 1) as manager:
        checkpoint.write(manager, 1, state, {})
        manager.wait_until_finished()
    return checkpoint_list.find(workdir, 'last', '')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp('source'), tree(PARAMS), tree(STATS, 50.0))


def actions(plan: restore.Plan) -> dict[str, str]:
    return {leaf.path: leaf.action for leaf in plan.leaves}


def refusal(folder, params, stats, rules) -> UserError:
    with pytest.raises(UserError) as caught:
        restore.make_plan(of_checkpoint(folder), (abstract(params), abstract(stats)), rules)
    return caught.value


def assert_same(result: dict, expected: dict) -> None:
    assert set(result) == set(expected)
    for path, leaf in result.items():
        assert np.asarray(leaf).tobytes() == np.asarray(expected[path]).tobytes(), path


def saved(workdir: Path) -> dict[str, np.ndarray]:
    """Read the last checkpoint of a run with Orbax; return arrays by parameter path."""
    state = ocp.PyTreeCheckpointer().restore(checkpoint_list.find(workdir, 'last', '') / 'state')
    return {**flatten(state['params']), **flatten(state['model_state']['batch_stats'])}


def test_loaded_leaves_are_bit_identical(folder):
    params, stats = abstract(PARAMS), abstract(STATS)
    plan = restore.make_plan(of_checkpoint(folder), (params, stats), ALL)
    expected = by_path(tree(PARAMS), tree(STATS, 50.0))
    assert actions(plan) == dict.fromkeys(expected, 'load')
    assert 'backbone/norm/mean' in expected
    result = restore.read(plan, (params, stats))
    assert_same(result, expected)
    nested = from_paths(result, params, stats)
    assert jax.tree.structure(nested) == jax.tree.structure((params, stats))
    assert_same(by_path(*nested), expected)


def test_a_new_head_is_left_to_be_initialised(folder):
    """It has another shape and one more leaf; the head of the checkpoint is not loaded."""
    wanted = {**PARAMS, 'head/logits/kernel': (2, 9), 'head/logits/bias': (9,)}
    plan = restore.make_plan(of_checkpoint(folder), (abstract(wanted), abstract(STATS)), NEW_HEAD)
    assert plan.paths('init') == ['head/logits/bias', 'head/logits/kernel']
    assert not plan.paths('drop')
    result = restore.read(plan, (abstract(wanted), abstract(STATS)))
    old = by_path(tree(PARAMS), tree(STATS, 50.0))
    assert_same(result, {p: leaf for p, leaf in old.items() if p.startswith('backbone/')})


def test_old_leaves_are_dropped_by_a_rule(folder):
    """A 'drop' rule drops them, and so does an 'init' rule that covers leaves of the old head."""
    wanted = {'backbone/conv/kernel': (3, 2), 'head/bias': (4,)}
    rules = (('head/.*', 'init'), ('backbone/norm/.*', 'drop'), ('.*', 'load'))
    plan = restore.make_plan(of_checkpoint(folder), (abstract(wanted), {}), rules)
    assert actions(plan) == {
        'backbone/conv/kernel': 'load',
        'backbone/norm/mean': 'drop',
        'backbone/norm/scale': 'drop',
        'backbone/norm/var': 'drop',
        'head/bias': 'init',
        'head/logits/kernel': 'drop',
    }
    assert set(restore.read(plan, (abstract(wanted), {}))) == {'backbone/conv/kernel'}
    assert 'load 1 (backbone), init 1 (head), drop 4 (backbone, head)' in plan.summary()


@pytest.mark.parametrize(
    'change, dtypes, line',
    [
        ({'backbone/conv/kernel': (3, 4)}, {}, 'DIFFERS backbone/conv/kernel 3x2 {0} -> 3x4 {0}'),
        # The same number of values is not the same shape.
        ({'backbone/conv/kernel': (2, 3)}, {}, 'DIFFERS backbone/conv/kernel 3x2 {0} -> 2x3 {0}'),
        (
            {},
            {'backbone/conv/kernel': jnp.bfloat16},
            'DIFFERS backbone/conv/kernel 3x2 {0} -> 3x2 bfloat16',
        ),
        ({'backbone/new': (2,)}, {}, 'NOT IN CHECKPOINT backbone/new - -> 2 {0}'),
        ({'backbone/conv/kernel': None}, {}, 'NOT IN MODEL backbone/conv/kernel 3x2 {0} -> -'),
    ],
)
def test_a_leaf_without_a_value_is_refused(change, dtypes, line, folder):
    wanted = {path: shape for path, shape in {**PARAMS, **change}.items() if shape}
    with pytest.raises(UserError) as caught:
        restore.make_plan(
            of_checkpoint(folder), (abstract(wanted, dtypes), abstract(STATS)), NEW_HEAD
        )
    message = [' '.join(text.split()) for text in caught.value.details.splitlines()]
    assert line.format('float32') in message
    assert len(message) == len({*PARAMS, *wanted}) + len(STATS)
    assert [text.split()[0] for text in message if 'norm' in text] == ['load'] * 3
    path = next(word for word in line.split() if word.startswith('backbone/'))
    assert f'1 of {len(message)} leaves, first {path}' in str(caught.value)


def test_statistics_count_as_leaves(folder):
    error = refusal(folder, PARAMS, {**STATS, 'batch_stats/backbone/norm/var': (3,)}, ALL)
    assert 'backbone/norm/var (DIFFERS: 2 float32 -> 3 float32)' in str(error)


def test_leaves_that_the_model_needs_cannot_be_dropped(folder):
    rules = (('backbone/conv/.*', 'drop'), ('.*', 'load'))
    error = refusal(folder, PARAMS, STATS, rules)
    assert 'backbone/conv/kernel (DROPPED, BUT THE MODEL NEEDS IT' in str(error)


def test_error_for_another_head_gives_the_rule_to_add(folder):
    wanted = {**PARAMS, 'head/logits/kernel': (2, 9)}
    error = refusal(folder, wanted, STATS, ALL)
    assert 'its head differs (head/logits/kernel: 2x5 float32 -> 2x9 float32)' in str(error)
    assert "add the rule ('head/.*', 'init') in front of config.restore.rules" in str(error)
    restore.make_plan(
        of_checkpoint(folder), (abstract(wanted), abstract(STATS)), (('head/.*', 'init'), *ALL)
    )


@pytest.mark.parametrize(
    'rules, parts',
    [
        (
            (('head/.*', 'fresh'), *ALL),
            ["'head/.*'", "'fresh'", 'load, resize, classes,'],
        ),
        ((('haed/.*', 'init'), *ALL), ["'haed/.*'", "'head/.*'"]),
        ((*ALL, ('head/.*', 'init')), ["'head/.*'", 'move it up']),
        ((('backbone/.*', 'load'),), ['head/logits/kernel', "('.*', VALUE)"]),
        ((('head/(', 'init'), *ALL), ["'head/('", 'regular expression']),
    ],
)
def test_a_rule_at_fault_is_named(rules, parts, folder):
    message = str(refusal(folder, PARAMS, STATS, rules))
    assert message.startswith('config.restore.rules: ') and all(
        part in message for part in parts
    ), message


# From other paths.

MOVED = {
    'backbone/stem/kernel': (3, 2),
    'backbone/stem/scale': (2,),
    'head/logits/kernel': (2, 5),
}
MOVED_STATS = {'batch_stats/backbone/stem/mean': (2,), 'batch_stats/backbone/stem/var': (2,)}
RENAMES = (
    ('backbone/stem/kernel', 'load backbone/conv/kernel'),
    (r'backbone/stem/(.*)', r'load backbone/norm/\1'),
    ('.*', 'load'),
)


def test_leaves_are_loaded_from_other_paths(folder):
    """Sources are whole paths, or use the groups of the rule; statistics are included."""
    params, stats = abstract(MOVED), abstract(MOVED_STATS)
    plan = restore.make_plan(of_checkpoint(folder), (params, stats), RENAMES)
    old = by_path(tree(PARAMS), tree(STATS, 50.0))
    result = restore.read(plan, (params, stats))
    assert_same(
        result,
        {
            'backbone/stem/kernel': old['backbone/conv/kernel'],
            'backbone/stem/scale': old['backbone/norm/scale'],
            'backbone/stem/mean': old['backbone/norm/mean'],
            'backbone/stem/var': old['backbone/norm/var'],
            'head/logits/kernel': old['head/logits/kernel'],
        },
    )
    lines = {leaf.path: leaf for leaf in plan.leaves}
    assert set(lines) == set(result)  # a path used only as a source has no line
    stem = lines['backbone/stem/scale']
    assert (stem.action, stem.key) == ('load', 'backbone/norm/scale')
    assert (stem.source, stem.target) == ('backbone/norm/scale 2 float32', '2 float32')


def test_two_leaves_from_one(folder):
    """Two other leaves exchange their sources."""
    wanted = {**PARAMS, 'backbone/first/scale': (2,), 'backbone/second/scale': (2,)}
    stats = {**STATS}
    rules = (
        (r'backbone/(first|second)/scale', 'load backbone/norm/scale'),
        ('backbone/norm/mean', 'load backbone/norm/var'),
        ('backbone/norm/var', 'load backbone/norm/mean'),
        ('.*', 'load'),
    )
    plan = restore.make_plan(of_checkpoint(folder), (abstract(wanted), abstract(stats)), rules)
    old = by_path(tree(PARAMS), tree(STATS, 50.0))
    result = restore.read(plan, (abstract(wanted), abstract(stats)))
    scale = old['backbone/norm/scale']
    expected = {**old, 'backbone/first/scale': scale, 'backbone/second/scale': scale}
    swapped = {
        'backbone/norm/mean': old['backbone/norm/var'],
        'backbone/norm/var': old['backbone/norm/mean'],
    }
    assert_same(result, {**expected, **swapped})
    assert plan.paths('load') == sorted(expected)


def test_leaves_from_one_path_do_not_share_memory(pretrained):
    """A step can donate the buffer of each."""
    rules = (
        "(('backbone/norm_0/var','load backbone/norm_0/scale'),('head/.*','init'),('.*','load'))"
    )
    words = [f'--config.init_from={pretrained}', f'--config.restore.rules={rules}']
    state = first_state(make_job(load(f'{TINY}:finetune', words)), seed=0)
    leaves = by_path(state.params, state.model_state)
    scale, var = leaves['backbone/norm_0/scale'], leaves['backbone/norm_0/var']
    np.testing.assert_array_equal(scale, var)
    jax.jit(lambda a, b: (a + 1, b + 2), donate_argnums=(0, 1))(scale, var)


def test_error_for_a_missing_source_suggests_the_nearest(folder):
    rules = (
        ('backbone/stem/kernel', 'load backbone/cnov/kernel'),
        (r'backbone/stem/(.*)', r'load backbone/norms/\1'),
        ('.*', 'load'),
    )
    error = refusal(folder, MOVED, MOVED_STATS, rules)
    assert str(error).startswith('config.restore.rules: backbone/stem/kernel ')
    for part in (' backbone/cnov/kernel', str(folder), "'backbone/conv/kernel'"):
        assert part in str(error), error
    assert error.details.splitlines() == [
        '  backbone/stem/kernel: no backbone/cnov/kernel',
        '  backbone/stem/mean: no backbone/norms/mean',
        '  backbone/stem/scale: no backbone/norms/scale',
        '  backbone/stem/var: no backbone/norms/var',
    ]


def test_a_source_of_another_shape(folder):
    wanted = {**PARAMS, 'backbone/new': (2, 3)}
    rules = (('backbone/new', 'load backbone/conv/kernel'), *ALL)
    error = refusal(folder, wanted, STATS, rules)
    message = 'first backbone/new (DIFFERS: backbone/conv/kernel 3x2 float32 -> 2x3 float32)'
    assert message in str(error)


@pytest.mark.parametrize('action', [r'load backbone/\2', r'load backbone/\g<name>', 'load a\\q'])
def test_an_action_that_does_not_fit_its_rule(action, folder):
    rules = ((r'backbone/stem/(.*)', action), *ALL)
    message = str(refusal(folder, MOVED, MOVED_STATS, rules))
    assert message.startswith(f'config.restore.rules: {action!r} does not fit the rule ')
    assert "'backbone/stem/(.*)' (" in message


def test_load_from_nowhere(folder):
    rules = (('backbone/conv/.*', 'load '), *ALL)
    assert "rule 'backbone/conv/.*' has the action 'load '" in str(
        refusal(folder, PARAMS, STATS, rules)
    )


def test_unused_leaves_must_be_dropped(folder):
    """Each key of the weights is used, or a rule drops it."""
    wanted = {'backbone/stem/kernel': (3, 2)}
    rules = (('backbone/stem/kernel', 'load backbone/conv/kernel'), *ALL)
    error = refusal(folder, wanted, {}, rules)
    left = {'backbone/norm/mean', 'backbone/norm/scale', 'backbone/norm/var', 'head/logits/kernel'}
    message = {line.split()[3] for line in error.details.splitlines() if 'NOT IN MODEL' in line}
    assert message == left
    rules = (rules[0], ('(backbone/norm|head)/.*', 'drop'), *ALL)
    plan = restore.make_plan(of_checkpoint(folder), (abstract(wanted), {}), rules)
    assert set(plan.paths('drop')) == left
    assert 'load 1 (backbone), drop 4 (backbone, head)' in plan.summary()


def test_ema_is_read_where_it_exists(tmp_path):
    """Frozen parameters have no EMA and are read from the parameters."""
    average = {path: PARAMS[path] for path in ('backbone/conv/kernel', 'head/logits/kernel')}
    folder = save(tmp_path, tree(PARAMS), tree(STATS), tree(average, 900.0))
    plan = restore.make_plan(of_checkpoint(folder), (abstract(PARAMS), abstract(STATS)), ALL)
    result = restore.read(plan, (abstract(PARAMS), abstract(STATS)))
    expected = by_path(tree(PARAMS), tree(STATS)) | flatten(tree(average, 900.0))
    assert_same(result, expected)


def test_a_run_starts_from_what_was_saved(pretrained):
    """Backbone and BatchNorm statistics equal the checkpoint's; the head is initialized."""
    cfg = load(f'{TINY}:linear', [f'--config.init_from={pretrained}'])
    scratch = first_state(make_job(load(f'{TINY}:scratch', [])), seed=3)
    state = first_state(make_job(cfg), seed=3)
    result = by_path(state.params, state.model_state)
    fresh = by_path(scratch.params, scratch.model_state)
    old = saved(pretrained)
    backbone = {path for path in result if path.startswith('backbone/')}
    head = set(result) - backbone
    assert {'backbone/norm_1/mean', 'backbone/norm_1/var'} < backbone
    assert head == {'head/logits/bias', 'head/logits/kernel'}
    assert_same({p: result[p] for p in backbone}, {p: old[p] for p in backbone})
    # The head depends only on the seed.
    assert_same({p: result[p] for p in head}, {p: fresh[p] for p in head})
    assert (np.asarray(result['head/logits/kernel']) != old['head/logits/kernel']).any()
    assert all((np.asarray(fresh[p]) != old[p]).any() for p in backbone)


def test_missing_value_at_read_time_is_an_error(folder):
    """It does not become zeros or an initial value: only the plan initializes leaves."""
    wanted = abstract({**PARAMS, 'backbone/conv/other': (3, 2)})
    plan = restore.make_plan(of_checkpoint(folder), (abstract(PARAMS), abstract(STATS)), ALL)
    path = 'backbone/conv/other'
    other = restore.Leaf(path, 'load', '3x2 float32', '3x2 float32', path)
    leaves = {**plan.stored.leaves, other.path: jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    stored = dataclasses.replace(plan.stored, leaves=leaves)
    plan = restore.Plan(stored, (*plan.leaves, other))
    with pytest.raises(UserError, match='has no value for .*other'):
        restore.read(plan, (wanted, abstract(STATS)))


def test_loaded_leaves_are_not_initialized_first(pretrained, monkeypatch):
    """The program that initializes values returns only those of the head."""
    made = []
    jit = jax.jit

    def recording(function, **options):
        compiled = jit(function, **options)

        def call(*args):
            made.append(compiled(*args))
            return made[-1]

        return call

    job = make_job(load(f'{TINY}:linear', [f'--config.init_from={pretrained}']))
    monkeypatch.setattr(jax, 'jit', recording)
    first_state(job, seed=0)
    assert set(made[0]) == {'head/logits/bias', 'head/logits/kernel'}


def test_the_plan_is_written_as_it_was_followed(pretrained, jaxtrain, tmp_path):
    words = [f'--config.init_from={pretrained}', '--config.steps=3', '--config.data.test=']
    outcome = jaxtrain('train', f'--config={TINY}:linear', f'--workdir={tmp_path}', *words)
    assert outcome.code == 0
    plan = make_job(load(f'{TINY}:linear', words)).start.plan
    written = json.loads((tmp_path / 'restore.json').read_text())
    assert written == plan.to_json()
    leaves = tuple(restore.Leaf(**leaf) for leaf in written['leaves'])
    assert (written['checkpoint'], leaves) == (plan.checkpoint, plan.leaves)
    assert written['checkpoint'] == str(checkpoint_list.find(pretrained, 'best', ''))
    assert plan.summary() in outcome.out
    assert 'load 10 (backbone), init 2 (head)' in plan.summary()
    # After three steps, the frozen backbone is bit-identical to the checkpoint.
    old, new = saved(pretrained), saved(tmp_path)
    loaded = [leaf['path'] for leaf in written['leaves'] if leaf['action'] == 'load']
    assert_same({p: new[p] for p in loaded}, {p: old[p] for p in loaded})


def test_a_run_may_be_named_by_a_relative_path(pretrained, jaxtrain, tmp_path, monkeypatch):
    monkeypatch.chdir(pretrained.parent)
    outcome = jaxtrain(
        'inspect', f'--config={TINY}:linear', f'--config.init_from={pretrained.name}'
    )
    assert outcome.code == 0, outcome.err
    assert f'restore from {pretrained}' in outcome.out
