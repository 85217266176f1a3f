"""Counts of operations agree with formulas, with an enumeration, and with the compiler."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxtrain.config import Config, base
from jaxtrain.costs.flops import count, of_jaxpr
from jaxtrain.loop.job import make_job
from jaxtrain.parallel.compile import trace_step


def abstract(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def square(x: jax.Array) -> jax.Array:
    return x @ x


def fourth(x: jax.Array) -> jax.Array:
    return square(square(x))


def test_products_of_matrices():
    flops = count(
        lambda a, b: jnp.einsum('bmk,bkn->bnm', a, b), abstract(3, 5, 7), abstract(3, 7, 2)
    )
    assert flops.matmul == 2 * 3 * 5 * 7 * 2


def test_other_operations():
    def f(x):
        return jnp.exp(x).sum(1) * 2  # 12 exponentials, 12 summands, 3 products

    flops = count(f, abstract(3, 4))
    assert (flops.matmul, flops.other) == (0, 12 + 12 + 3)


CONVOLUTIONS = {
    'same': dict(strides=(1, 1), padding=((1, 1), (1, 1))),
    'stride': dict(strides=(2, 3), padding=((0, 1), (2, 1))),
    'input dilated': dict(strides=(1, 1), padding=((2, 1), (1, 2)), lhs_dilation=(2, 3)),
    'kernel dilated': dict(strides=(1, 2), padding=((2, 2), (1, 1)), rhs_dilation=(2, 1)),
    'groups': dict(strides=(1, 1), padding=((1, 1), (1, 1)), feature_group_count=2),
    'batch groups': dict(strides=(1, 1), padding=((1, 1), (1, 1)), batch_group_count=2),
}


@pytest.mark.parametrize('options', CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolutions_count_their_multiply_adds(options):
    """With ones as input and kernel, each output is the number of its multiply-adds."""
    options = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), **options}
    strides, padding = options.pop('strides'), options.pop('padding')
    inputs = 4 // options.get('feature_group_count', 1)

    def f(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    x, kernel = jnp.ones((2, 7, 6, 4)), jnp.ones((3, 3, inputs, 6))
    assert count(f, x, kernel).matmul == 2 * float(f(x, kernel).sum())


def test_each_gradient_of_a_convolution_costs_as_much():
    """Each of its multiply-adds has a counterpart in both of its gradients."""

    def f(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        ).sum()

    x, kernel = abstract(2, 9, 8, 3), abstract(3, 3, 3, 5)
    forward = count(f, x, kernel).matmul
    assert count(jax.grad(f, argnums=(0, 1)), x, kernel).matmul == 2 * forward


ONE = 2 * 4**3


@jax.custom_vjp
def custom(x):
    return square(x)


custom.defvjp(lambda x: (square(x), x), lambda x, g: (g @ x.T + x.T @ g,))


@pytest.mark.parametrize(
    'f, products',
    [
        (lambda x: lax.scan(lambda c, _: (square(c), None), x, None, length=5)[0], 5),
        (lambda x: lax.fori_loop(0, 5, lambda i, c: square(c), x), 5),
        (lambda x: lax.cond(x.sum() > 0, square, fourth, x), 2),
        (lambda x: lax.platform_dependent(x, cpu=square, default=square), 1),
        (jax.jit(jax.jit(square)), 1),
        (lambda x: jax.grad(lambda y: jax.checkpoint(square)(y).sum())(x), 2),
        (lambda x: jax.grad(lambda y: jnp.sin(jax.checkpoint(fourth)(y)).sum())(x), 2 + 1 + 4),
        (custom, 1),
        (jax.grad(lambda x: jnp.sin(custom(x)).sum()), 1 + 2),
        (lambda x: jax.vmap(square)(jnp.stack([x, x, x])), 3),
    ],
)
def test_calls_and_control_flow(f, products):
    flops = count(f, abstract(4, 4))
    assert flops.matmul == products * ONE
    assert not flops.unknown_loops


def test_a_loop_of_unknown_length_is_reported():
    flops = count(lambda x: lax.while_loop(lambda c: c.sum() < 9, square, x), abstract(4, 4))
    assert flops.matmul == ONE
    assert flops.unknown_loops


def test_shapes_in_shard_map_are_those_of_one_device():
    auto = (jax.sharding.AxisType.Auto,) * 2  # newer versions of JAX take explicit ones
    mesh = jax.sharding.AbstractMesh((8, 2), ('d', 'e'), axis_types=auto)
    f = jax.shard_map(
        lambda x, y: x @ y, mesh=mesh, in_specs=(P('d'), P(None, 'e')), out_specs=P('d', 'e')
    )
    assert count(f, abstract(16, 4), abstract(4, 6)).matmul == 2 * 16 * 4 * 6


def test_shapes_in_pmap_are_those_of_one_device():
    f = jax.pmap(square, axis_name='d')
    assert count(f, abstract(1, 4, 4)).matmul == ONE


FIELDS = {
    'cnn': {'widths': (64, 256)},
    'resnet': {'depth': 18},
    'vit': {'patch': (2, 2), 'width': 384, 'depth': 2, 'heads': 4, 'mlp': 1536},
    'gpt': {'width': 384, 'depth': 2, 'heads': 4, 'mlp': 1536},
}


def job(model: str, corpus: Path, **fields):
    """A job wide enough that most of its operations are in matrix products."""
    c = base()
    c.model.name = model
    for name, value in {**FIELDS[model], **fields}.items():
        c.model[name] = value
    c.steps, c.batch_size = 5, 8
    if model == 'gpt':
        c.task.name, c.data.source, c.data.path = 'lm', 'corpus', str(corpus)
        c.data.tokenizer, c.data.length = 'bytes', 32
    else:
        c.data.name = 'digits'
    if model == 'resnet':
        c.data.image_size = (64, 64)
    return make_job(Config(c.to_dict()))


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp('corpus')
    for split in ('train', 'val', 'test'):
        (folder / f'{split}.txt').write_text('all that is gold does not glitter ' * 100)
    return folder


SLOW = ('resnet', 'gpt')  # others have their convolutions and their attention


@pytest.mark.parametrize(
    'model', [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOW)) for m in FIELDS]
)
def test_a_whole_step_agrees_with_the_compiler(model, corpus):
    traced = trace_step(*job(model, corpus).program())
    flops = of_jaxpr(traced.jaxpr)
    compiled = traced.lower().compile({'xla_backend_optimization_level': 0})
    assert flops.matmul + flops.other == pytest.approx(compiled.cost_analysis()['flops'], rel=0.03)
    assert flops.other < 0.1 * flops.matmul


@pytest.mark.parametrize('model', ['vit', 'gpt'])
def test_scanned_layers_count_as_much_as_unrolled_ones(model, corpus):
    def matmul(**fields):
        narrow = {'width': 32, 'depth': 3, 'heads': 2, 'mlp': 64}
        return of_jaxpr(trace_step(*job(model, corpus, **narrow, **fields).program()).jaxpr).matmul

    assert matmul(scan=True) == matmul(scan=False)


def test_fused_attention_counts_as_much_as_its_products(monkeypatch):
    """cuDNN's kernels are single operations. Nothing is run: the checks for a GPU are replaced."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91000)
    monkeypatch.setattr(cudnn, 'check_compute_capability', lambda *_: True)
    qkv = [jax.ShapeDtypeStruct((2, n, 4, 64), jnp.bfloat16) for n in (64, 128, 128)]

    def matmul(implementation: str) -> float:
        def loss(*qkv):
            return jax.nn.dot_product_attention(*qkv, implementation=implementation).sum()

        return count(jax.grad(loss, (0, 1, 2)), *qkv).matmul

    # Unfused, the product with the values is not needed for the gradient, and not computed.
    assert matmul('cudnn') == matmul('xla') + 2 * 2 * 4 * 64 * 128 * 64
