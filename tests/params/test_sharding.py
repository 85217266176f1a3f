"""Meshes, and the sharding of parameters, optimizer state and batches over them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from jaxtrain.config import Config
from jaxtrain.data.features import classified_image
from jaxtrain.errors import UserError
from jaxtrain.loop.job import make_job
from jaxtrain.models.gpt import GPT
from jaxtrain.models.vit import ViT
from jaxtrain.parallel.compile import trace_step
from jaxtrain.parallel.mesh import AXES, abstract_batch, make_mesh
from jaxtrain.parallel.replicas import Replicas
from jaxtrain.params.partition import flatten, unflatten
from jaxtrain.params.sharding import like_params, make_specs, nbytes_per_device, to_text
from tests.configs.tiny import get_config
from tests.support.inputs import abstract_variables

VIT = ViT(outputs=10, patch=(4, 4), width=32, depth=1, heads=4, mlp=64)
PARAMS = abstract_variables(VIT, (8, 8, 3))[0]


def mesh(data=1, fsdp=1, tensor=1) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), AXES)


def specs(on: AbstractMesh, params=PARAMS, rules=(('.*', 'auto'),), tensor=ViT.TENSOR):
    return make_specs(rules, on, params, tensor)


def test_an_axis_of_one_device_shards_nothing():
    assert {to_text(s) for s in specs(mesh(data=8)).values()} == {'replicated'}


def test_auto_shards_heads_hidden_units_and_long_dimensions():
    """Heads and hidden units are sharded over tensor, the longest other dimension over fsdp."""
    by_path = specs(mesh(2, 2, 2))
    texts = {path.removeprefix('backbone/block_0/'): to_text(s) for path, s in by_path.items()}
    assert texts['attention/query/kernel'] == 'fsdp tensor -'  # [width, heads, size]
    assert texts['attention/query/bias'] == 'tensor -'
    assert texts['attention/out/kernel'] == 'tensor - fsdp'
    assert texts['attention/out/bias'] == 'replicated'
    assert texts['mlp/up/kernel'] == 'fsdp tensor'
    assert texts['mlp/up/bias'] == 'tensor'
    assert texts['mlp/down/kernel'] == 'tensor fsdp'
    assert texts['norm_1/scale'] == 'replicated'
    assert texts['backbone/patch/kernel'] == '- - - fsdp'
    assert texts['head/logits/kernel'] == 'fsdp tensor'


def test_auto_shards_only_divisible_dimensions():
    by_path = specs(mesh(1, 4, 8))
    assert to_text(by_path['backbone/block_0/attention/query/kernel']) == 'fsdp - -'  # 8 > 4 heads
    assert to_text(by_path['backbone/block_0/mlp/up/kernel']) == 'fsdp tensor'
    assert to_text(by_path['head/logits/kernel']) == 'fsdp -'  # 10 classes


def test_auto_shards_the_vocabulary():
    params = abstract_variables(GPT(outputs=256, width=8, depth=1, heads=2, context=8), (8,))[0]
    assert (
        to_text(specs(mesh(tensor=4), params, tensor=GPT.TENSOR)['backbone/tokens/embedding'])
        == 'tensor -'
    )


def test_rules_replace_auto():
    by_path = specs(
        mesh(1, 2, 2),
        rules=(('.*/mlp/up/kernel', 'tensor fsdp'), ('.*/patch/.*', 'replicated'), ('.*', 'auto')),
    )
    assert by_path['backbone/block_0/mlp/up/kernel'] == P('tensor', 'fsdp')
    assert by_path['backbone/patch/kernel'] == P()
    assert to_text(by_path['backbone/block_0/mlp/down/kernel']) == 'tensor fsdp'


@pytest.mark.parametrize(
    ('rules', 'message'),
    [
        ((('.*/up/kernel', 'tensor'), ('.*', 'auto')), "'tensor' does not fit .* shape 32x64"),
        ((('.*/up/kernel', 'data -'), ('.*', 'auto')), "'data -' does not fit"),
        ((('.*/up/kernel', 'fsdp fsdp'), ('.*', 'auto')), "'fsdp fsdp' does not fit"),
        (
            (('head/logits/kernel', '- fsdp'), ('.*', 'auto')),
            "'- fsdp' shards 10 of head/logits/kernel over config.mesh.fsdp=4",
        ),
        ((('.*/norm/kernel', 'auto'), ('.*', 'auto')), "config.mesh.rules: .*'.*/norm/kernel'"),
        ((('.*', 'replicated'),), 'config.mesh.fsdp=4: no parameter is sharded over it'),
    ],
)  # fmt: skip
def test_invalid_rules_are_refused(rules, message):
    with pytest.raises(UserError, match=message):
        specs(mesh(1, 4, 1), rules=rules)


def test_a_tensor_axis_that_shards_no_parameter_is_refused():
    conv = {'backbone': {'conv': {'kernel': jax.ShapeDtypeStruct((3, 3, 8, 8), jnp.float32)}}}
    with pytest.raises(UserError, match='config.mesh.tensor=2: no parameter is sharded over it'):
        specs(mesh(tensor=2), conv)


def test_optimizer_state_is_sharded_like_parameters():
    on = mesh(1, 4, 1)
    labels = unflatten({p: 'head' if p.startswith('head') else 'rest' for p in flatten(PARAMS)})
    for name, moments in (('adam', 2), ('sgd', 1), ('lion', 1)):
        make = {'adam': optax.adam, 'lion': optax.lion}.get(name)
        one = make(1e-3) if make else optax.sgd(1e-3, momentum=0.9)
        tx = optax.chain(
            optax.clip_by_global_norm(1.0), optax.partition({'head': one, 'rest': one}, labels)
        )
        state = jax.eval_shape(tx.init, PARAMS)
        by_path = specs(on)
        params = like_params(PARAMS, by_path, PARAMS, on)
        held = like_params(state, by_path, PARAMS, on)
        assert jax.tree.structure(held) == jax.tree.structure(state)
        split = [leaf for p, leaf in flatten(PARAMS).items() if 'fsdp' in by_path[p]]
        whole = [leaf for p, leaf in flatten(PARAMS).items() if 'fsdp' not in by_path[p]]
        expected = sum(4 * leaf.size // 4 for leaf in split) + sum(4 * leaf.size for leaf in whole)
        assert nbytes_per_device(params) == expected
        counters = sum(4 for leaf in jax.tree.leaves(state) if not leaf.shape)
        assert nbytes_per_device(held) == moments * expected + counters


def test_state_of_another_shape_than_the_parameter_is_replicated():
    """Adafactor keeps rows and columns."""
    on = mesh(1, 4, 1)
    tx = optax.adafactor(1e-3, min_dim_size_to_factor=16)
    state = jax.eval_shape(tx.init, PARAMS)
    held = like_params(state, specs(on), PARAMS, on)
    rows = [leaf for leaf in jax.tree.leaves(held) if leaf.shape == (32,)]
    assert rows and all(leaf.sharding.spec == P() for leaf in rows)


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        (
            (-1, 3, 1),
            'fsdp=3, tensor=1 multiplies to 3, which does not divide the 8 devices',
        ),
        ((4, 4, 1), 'data=4, fsdp=4, tensor=1 multiplies to 16, but there are 8 devices'),
        ((1, 1, 1), 'data=1, fsdp=1, tensor=1 multiplies to 1, but there are 8 devices'),
        ((2, 2, 1), 'data=2, fsdp=2, tensor=1 multiplies to 4, but there are 8 devices'),
        ((-1, -1, 1), 'one of them may be -1'),
        ((-1, 1, 0), 'each must be 1 or more'),
    ],
)
def test_invalid_mesh_sizes_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(sizes, jax.devices() * 8)


class Device:
    """A device with the attributes that `make_mesh` reads."""

    platform = 'gpu'

    def __init__(self, number: int, slice_index: int):
        self.id, self.slice_index = number, slice_index


def test_slices_are_split_along_data_only():
    devices = [Device(n, n // 4) for n in range(8)]
    grid = make_mesh((-1, 2, 2), devices).devices
    assert grid.shape == (2, 2, 2)
    slices = np.vectorize(lambda d: d.slice_index)(grid)
    assert (slices == np.array([0, 1])[:, None, None]).all()
    with pytest.raises(UserError, match='config.mesh.data=1 is not a multiple of the 2 slices'):
        make_mesh((-1, 8, 1), devices)


@pytest.mark.parametrize('steps', [1, 3])
def test_batches_are_sharded_over_examples_and_not_over_steps(steps):
    """Examples are sharded over data and fsdp; devices along tensor hold the same examples."""
    features = classified_image(6, 6, 1)
    batch = abstract_batch(features, 16, mesh(4, 2, 2), steps)
    held = {name: x.sharding.shard_shape(x.shape) for name, x in batch.items()}
    front = () if steps == 1 else (steps,)
    assert held == {'image': (*front, 2, 6, 6, 1), 'label': (*front, 2)}


@pytest.mark.parametrize('parallel', ['jit', 'pmap'])
def test_the_step_donates_its_whole_state(parallel):
    """Otherwise a step would need memory for two states."""
    job = make_job(Config(get_config().to_dict()).replace(parallel=parallel, ema=0.9))
    text = trace_step(*job.program()).lower().as_text()
    (main,) = (line for line in text.splitlines() if 'func.func public @main' in line)
    arguments = main.split('->')[0]
    kept = {int(n) for n in re.findall(r'tf.aliasing_output = (\d+)', arguments)}
    assert kept == set(range(len(jax.tree.leaves(job.abstract))))


def test_replicas_gather_and_split_rows_and_sum_over_devices():
    """vmap simulates pmap over 4 devices."""
    replicas, whole = Replicas(axis='data'), {'x': jnp.arange(8.0)}
    shares = jax.vmap(lambda _: replicas.local_rows(whole), axis_name='data')(jnp.zeros(4))
    np.testing.assert_array_equal(shares['x'], whole['x'].reshape(4, 2))
    gathered = jax.vmap(replicas.gather, axis_name='data')(shares)
    np.testing.assert_array_equal(gathered['x'], np.tile(whole['x'], (4, 1)))
    sums = jax.vmap(replicas.sum, axis_name='data')(shares)
    np.testing.assert_array_equal(sums['x'], np.tile([12.0, 16.0], (4, 1)))
    assert (
        Replicas().local_rows(whole) is Replicas().gather(whole) is Replicas().sum(whole) is whole
    )
