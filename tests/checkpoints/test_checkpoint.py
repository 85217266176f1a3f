"""Checkpoints are restored bit for bit; which of them are kept, and how they are found by name."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxtrain.checkpoints import checkpoint, checkpoint_files, checkpoint_list
from jaxtrain.errors import UserError
from jaxtrain.parallel.mesh import make_mesh, on_mesh
from jaxtrain.runs.metric import best_of
from jaxtrain.step.state import TrainState
from jaxtrain.tasks.tasks import TASKS

HOST = {'seconds': {'train': 1.25}, 'window': {'loss': 0.1 + 0.2, 'steps': 3}}


def make_state(step: int = 0, ema: bool = False) -> TrainState:
    """Make a small state of random numbers, with statistics, two moments and unusual values."""
    rng = np.random.default_rng(step)
    params = {
        'backbone': {'kernel': jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)},
        'head': {'bias': jnp.asarray([0.0, -0.0, 1e-42, 3e38], jnp.float32)},
    }
    opt_state = optax.adam(0.1).init(params)
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        seed=jnp.asarray(2**32 - 1, jnp.uint32),
        params=params,
        model_state={'batch_stats': {'backbone': {'norm': {'mean': jnp.arange(3.0) / 7}}}},
        opt_state=jax.tree.map(lambda x: x + jnp.asarray(rng.integers(1, 9), x.dtype), opt_state),
        ema=jax.tree.map(lambda x: x / 3, params) if ema else {},
    )


def abstract(state: TrainState) -> TrainState:
    return on_mesh(jax.eval_shape(lambda: state), make_mesh())


def save_all(workdir: Path, metrics: dict[int, dict | None], keep: int, best: str) -> None:
    """Save a state at each step, with the given val metrics."""
    workdir.mkdir(exist_ok=True)
    config = {'config': {'keep': keep, 'best_metric': best}}
    (workdir / 'config.json').write_text(json.dumps(config))
    val = {}
    with checkpoint.open_manager(
        workdir, keep, partial(best_of, val, TASKS['classify'].metric(best))
    ) as manager:
        for step, values in metrics.items():
            save(manager, step, make_state(step))
            if values:
                val[step] = values
                with (workdir / 'metrics.jsonl').open('a') as file:
                    file.write(json.dumps({'step': step, 'split': 'val', **values}) + '\n')
        manager.wait_until_finished()


def save(manager, step: int, state: TrainState, **options) -> None:
    checkpoint.save(manager, step, state, HOST, lambda reason: None, **options)


def kept(workdir: Path) -> set[str]:
    return {p.name for p in (workdir / 'checkpoints').iterdir()}


def assert_same_bits(one: TrainState, two: TrainState) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(two), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)


@pytest.mark.parametrize('ema', [False, True])
def test_a_state_is_restored_bit_for_bit(ema, tmp_path):
    state = make_state(step=5, ema=ema)
    with checkpoint.open_manager(tmp_path, 1) as manager:
        save(manager, 5, state)
        manager.wait_until_finished()
    with checkpoint.open_manager(tmp_path, 1) as manager:
        resumed = checkpoint.resume(manager, abstract(state), [manager.latest_step()])
    assert_same_bits(resumed.state, state)
    assert (resumed.step, resumed.damaged) == (5, {})
    assert {key: resumed.host[key] for key in HOST} == HOST
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(resumed.state))


def test_host_values_that_have_changed_are_noticed(tmp_path):
    """A flipped bit can yield a valid JSON file with a different value."""
    save_all(tmp_path, {1: None}, keep=1, best='accuracy')
    folder = checkpoint_list.find(tmp_path, 'last', '')
    file = folder / 'host' / 'metadata'
    assert checkpoint_files.read_host(folder)['seconds'] == HOST['seconds']
    file.write_text(file.read_text().replace('1.25', '1.26'))
    with pytest.raises(ValueError, match='host values'):
        checkpoint_files.read_host(folder)
    with checkpoint.open_manager(tmp_path, 1) as manager, pytest.raises(UserError, match='step 1'):
        checkpoint.resume(manager, abstract(make_state(1)), [1])


def test_only_a_part_of_the_state_is_read_from_the_disk_at_a_time(tmp_path, monkeypatch):
    """Without a limit Orbax reads all arrays at once, which takes the memory of another state."""
    params = {f'layer_{n}': jnp.zeros(1000) for n in range(30)}
    state = make_state().replace(params=params, opt_state={}, model_state={})
    limits, handler = [], ocp.PyTreeCheckpointHandler

    def spy(*args, restore_concurrent_gb=None, **options):
        limits.append(restore_concurrent_gb)
        return handler(*args, restore_concurrent_gb=restore_concurrent_gb, **options)

    with checkpoint.open_manager(tmp_path, 1) as manager:
        save(manager, 1, state, wait=True)
        monkeypatch.setattr(ocp, 'PyTreeCheckpointHandler', spy)
        checkpoint.resume(manager, abstract(state), [1])
    assert max(filter(None, limits)) * 1e9 == pytest.approx(0.05 * 30 * 4000, rel=0.01)
    # The limit must allow the largest array.
    whole = {'one': jnp.zeros(10**6), 'two': jnp.zeros(10)}
    assert 4e6 < checkpoint._at_once(whole) * 1e9 < 1.2 * 4e6


def test_the_state_may_be_donated_once_save_returns(tmp_path):
    state, expected = make_state(step=1), make_state(step=1)
    change = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    with checkpoint.open_manager(tmp_path, 1) as manager:
        save(manager, 1, state)
        jax.block_until_ready(change(state))
        manager.wait_until_finished()
        resumed = checkpoint.resume(manager, abstract(expected), [1])
    assert_same_bits(resumed.state, expected)


@pytest.mark.parametrize(
    'best_metric, best', [('accuracy', '20'), ('loss', '30')], ids=['highest', 'lowest']
)
def test_the_best_and_the_last_are_kept_and_found_by_name(best_metric, best, tmp_path):
    metrics = {
        10: {'accuracy': 0.1, 'loss': 3.0},
        20: {'accuracy': 0.9, 'loss': 2.0},
        30: {'accuracy': 0.3, 'loss': 1.0},
        40: {'accuracy': 0.2, 'loss': 4.0},
        50: {'accuracy': 0.4, 'loss': 2.5},
    }
    save_all(tmp_path, metrics, keep=2, best=best_metric)
    assert kept(tmp_path) == {best, '40', '50'}
    for name, step in {'best': best, 'last': '50', '40': '40'}.items():
        assert checkpoint_list.find(tmp_path, name, '--checkpoint').name == step


def test_only_a_step_that_was_evaluated_can_be_the_best(tmp_path):
    metrics = {9: {'accuracy': 0.5}, 10: None, 11: {'accuracy': 0.2}, 12: None}
    save_all(tmp_path, metrics, keep=1, best='accuracy')
    assert kept(tmp_path) == {'9', '12'}
    assert checkpoint_list.find(tmp_path, 'best', '--checkpoint').name == '9'


def test_the_last_is_the_best_if_no_step_was_evaluated(tmp_path):
    save_all(tmp_path, {9: None, 10: None}, keep=1, best='accuracy')
    assert kept(tmp_path) == {'10'}  # compared as numbers, not as text
    assert checkpoint_list.find(tmp_path, 'best', '--checkpoint').name == '10'


def test_an_interrupted_save_does_not_count(tmp_path):
    save_all(tmp_path, {5: {'accuracy': 0.5}}, keep=1, best='accuracy')
    leftovers = [tmp_path / 'checkpoints' / f'{n}.orbax-checkpoint-tmp' for n in (7, 9)]
    for leftover in leftovers:
        (leftover / 'state').mkdir(parents=True)
    for name in ('best', 'last'):
        assert checkpoint_list.find(tmp_path, name, '--checkpoint').name == '5'
    with pytest.raises(UserError, match="no checkpoint '7'"):
        checkpoint_list.find(tmp_path, '7', '--checkpoint')
    assert checkpoint_list.saved_steps(tmp_path) == [5]
    # The run may still be writing them, so that only its own next start removes them.
    assert all((leftover / 'state').exists() for leftover in leftovers)
    with checkpoint.open_manager(tmp_path, 1) as manager:
        assert manager.latest_step() == 5
        save(manager, 7, make_state(7))
        manager.wait_until_finished()
    assert kept(tmp_path) == {'7'}


@pytest.mark.parametrize('folder', ['', 'checkpoints'])
def test_a_run_without_checkpoints_is_an_error_that_names_the_folder(folder, tmp_path):
    (tmp_path / folder).mkdir(exist_ok=True)
    with pytest.raises(UserError) as caught:
        checkpoint_list.find(tmp_path, 'best', 'config.init_from')
    message = str(caught.value)
    prefix = f"config.init_from='{tmp_path}': there is no checkpoint in {tmp_path}/"
    assert message.startswith(prefix)


@pytest.mark.parametrize('name', ['2', 'lats', '-1', ''])
def test_an_unknown_name_is_an_error_that_lists_the_steps(name, tmp_path):
    save_all(tmp_path, {1: None, 3: None}, keep=2, best='accuracy')
    with pytest.raises(UserError) as caught:
        checkpoint_list.find(tmp_path, name, '--checkpoint')
    message = str(caught.value)
    assert message.startswith('--checkpoint: ') and f'no checkpoint {name!r}' in message
    assert message.endswith("choose 'best', 'last' or one of 1, 3")


def test_metadata_has_shapes_and_dtypes(tmp_path):
    save_all(tmp_path, {1: None}, keep=1, best='accuracy')
    tree = checkpoint_files.read_metadata(checkpoint_list.find(tmp_path, 'last', ''))
    assert set(tree) == {'step', 'seed', 'params', 'model_state', 'opt_state'}
    expected = jax.eval_shape(make_state)
    assert tree['params'] == expected.params and tree['model_state'] == expected.model_state


def test_only_the_wanted_leaves_are_read(tmp_path):
    save_all(tmp_path, {1: None}, keep=1, best='accuracy')
    state = make_state(1)
    wanted = {'params': {'head': abstract(state).params['head']}}
    values = checkpoint_files.read(checkpoint_list.find(tmp_path, 'last', ''), wanted)
    assert jax.tree.structure(values) == jax.tree.structure(wanted)
    bias = np.asarray(values['params']['head']['bias'])
    assert bias.tobytes() == np.asarray(state.params['head']['bias']).tobytes()


def test_a_leaf_that_was_not_saved_is_an_error(tmp_path):
    save_all(tmp_path, {1: None}, keep=1, best='accuracy')
    head = {**make_state().params['head'], 'kernel': jnp.ones((2, 2))}
    wanted = on_mesh(jax.eval_shape(lambda: {'params': {'head': head}}), make_mesh())
    with pytest.raises(UserError, match=r"has no value for .*'kernel'"):
        checkpoint_files.read(checkpoint_list.find(tmp_path, 'last', ''), wanted)
