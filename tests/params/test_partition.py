"""The split into trainable and frozen parameters, and which BatchNorm layers are frozen."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxtrain.config import Config, base
from jaxtrain.errors import UserError
from jaxtrain.params.partition import (
    count,
    flatten,
    make_partition,
    merge,
    nbytes,
    unflatten,
)

PARAMS = {
    'backbone': {
        'conv_0': {'kernel': np.arange(54.0).reshape(3, 3, 2, 3)},
        'norm_0': {'scale': np.ones(3, np.float32), 'bias': np.zeros(3, np.float32)},
        'norm_1': {'scale': np.ones(3, np.float16), 'bias': np.zeros(3, np.float16)},
    },
    'head': {'logits': {'kernel': np.ones((3, 5), np.float32), 'bias': np.float32(1)}},
}
STATS = {'mean': np.zeros(3), 'var': np.ones(3)}
STATE = {'batch_stats': {'backbone': {'norm_0': STATS, 'norm_1': STATS, 'plain': STATS}}}
HEAD_ONLY = (('backbone/.*', 'frozen'), ('.*', 'head'))


def partition(groups, frozen_norm='frozen', params=PARAMS):
    cfg = Config(base().to_dict()).replace(groups=groups, frozen_norm=frozen_norm)
    return make_partition(cfg, params, STATE)


def test_paths():
    flat = flatten(PARAMS)
    assert set(flat) == {
        'backbone/conv_0/kernel', 'backbone/norm_0/scale', 'backbone/norm_0/bias',
        'backbone/norm_1/scale', 'backbone/norm_1/bias', 'head/logits/kernel', 'head/logits/bias',
    }  # fmt: skip
    assert flat['head/logits/kernel'] is PARAMS['head']['logits']['kernel']
    assert unflatten(flat) == PARAMS


@pytest.mark.parametrize(
    'groups',
    [HEAD_ONLY, (('.*', 'all'),), (('.*/bias', 'frozen'), ('head/.*', 'a'), ('.*', 'b'))],
)
def test_split_and_merge_are_inverse(groups):
    part = partition(groups)
    trainable, frozen = part.split(PARAMS)
    assert set(flatten(trainable)) == set(part.trainable)
    assert not set(flatten(trainable)) & set(flatten(frozen))
    back = merge(trainable, frozen)
    assert jax.tree.structure(back) == jax.tree.structure(PARAMS)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (back, PARAMS)), strict=True))


def test_groups():
    part = partition((('.*/bias', 'biases'), ('head/.*', 'head'), ('.*', 'frozen')))
    assert part.groups == {
        'backbone/conv_0/kernel': 'frozen',
        'backbone/norm_0/scale': 'frozen',
        'backbone/norm_0/bias': 'biases',
        'backbone/norm_1/scale': 'frozen',
        'backbone/norm_1/bias': 'biases',
        'head/logits/kernel': 'head',
        'head/logits/bias': 'biases',
    }
    _, frozen = part.split(PARAMS)
    assert 'head' not in frozen  # no empty branch remains


def test_everything_frozen_is_an_error():
    with pytest.raises(UserError, match='freezes all 7 parameters.*nothing is left to train'):
        partition((('.*', 'frozen'),))


def test_errors_in_rules_name_the_key():
    with pytest.raises(UserError, match=r"config\.groups: .*'bakbone/\.\*'.*'backbone/\.\*'"):
        partition((('bakbone/.*', 'frozen'), ('.*', 'all')))
    with pytest.raises(UserError, match=r'config\.groups: no rule matches head/logits'):
        partition((('backbone/.*', 'frozen'),))


def test_an_unknown_frozen_norm_is_refused():
    with pytest.raises(UserError, match=r"config\.frozen_norm='adopt'.*'adapt'"):
        partition(HEAD_ONLY, 'adopt')


def norms(*names: str) -> frozenset[str]:
    return frozenset(f'backbone/{name}' for name in names)


@pytest.mark.parametrize(
    ('groups', 'expected'),
    [
        ((('.*', 'all'),), norms()),
        (HEAD_ONLY, norms('norm_0', 'norm_1', 'plain')),
        # A norm with parameters follows them.
        ((('backbone/norm_0/.*', 'frozen'), ('.*', 'all')), norms('norm_0')),
        # A partly frozen norm counts as trained.
        ((('.*/scale', 'frozen'), ('.*', 'all')), norms()),
        # A norm without parameters follows the rule that matches its path.
        ((('backbone/norm_.*', 'all'), ('backbone/.*', 'frozen'), ('.*', 'all')), norms('plain')),
        ((('backbone/conv_0/.*', 'frozen'), ('.*', 'all')), norms()),
        # Its statistics have paths below its name, like parameters.
        ((('.*/(norm_1|plain)/.*', 'frozen'), ('.*', 'all')), norms('norm_1', 'plain')),
        # If no rule matches it, it is trained.
        ((('.*/kernel', 'all'), ('.*/(scale|bias)', 'frozen')), norms('norm_0', 'norm_1')),
    ],
)
def test_frozen_norms(groups, expected):
    assert partition(groups).frozen_norms == expected


def test_adapt_freezes_parameters_but_not_statistics():
    part = partition(HEAD_ONLY, 'adapt')
    assert part.frozen_norms == frozenset()
    assert part.trainable == ['head/logits/kernel', 'head/logits/bias']


class TwoNorms(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(name='first')(x, use_running_average=False)
        return nn.BatchNorm(name='second')(x, use_running_average=False)


def test_freeze_norms_affects_only_the_named_layers():
    model, x = TwoNorms(), np.random.default_rng(0).normal(3, 2, (8, 2)).astype(np.float32)
    variables = model.init(jax.random.key(0), x)
    cfg = Config(base().to_dict()).replace(groups=(('first/.*', 'frozen'), ('.*', 'all')))
    part = make_partition(cfg, variables['params'], {'batch_stats': variables['batch_stats']})
    with part.freeze_norms():
        y, new = model.apply(variables, x, mutable=['batch_stats'])
    stats = new['batch_stats']
    np.testing.assert_array_equal(stats['first']['mean'], [0, 0])
    np.testing.assert_array_equal(stats['first']['var'], [1, 1])
    first = x / np.sqrt(1 + 1e-5)  # the running mean 0 and variance 1
    np.testing.assert_allclose(stats['second']['mean'], 0.01 * first.mean(0), rtol=1e-5)
    expected = (first - first.mean(0)) / np.sqrt(first.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_count_and_nbytes_against_numpy():
    leaves = jax.tree.leaves(PARAMS)
    assert count(PARAMS) == sum(np.size(leaf) for leaf in leaves) == 54 + 12 + 15 + 1
    assert nbytes(PARAMS) == sum(leaf.nbytes for leaf in leaves) == 54 * 8 + 24 + 12 + 64
    assert nbytes(jax.eval_shape(lambda: jax.tree.map(np.float32, {'a': 1}))) == 4
    assert count({}) == nbytes({}) == 0
