"""The devices of slices that are not there."""

import os
import subprocess
import sys

import pytest

from jaxtrain.costs.topology import devices
from jaxtrain.errors import UserError
from tests.conftest import ROOT, needs_libtpu


@needs_libtpu
@pytest.mark.parametrize(
    'topology, slices, count, kind',
    [
        ('v4:2x2x2', 1, 8, 'TPU v4'),  # A device a chip, not one a core.
        ('v5e:4x4', 2, 32, 'TPU v5 lite'),
        ('v5p:2x2x1', 1, 4, 'TPU v5'),
        ('v6e:2x4', 1, 8, 'TPU v6 lite'),
    ],
)
def test_known_topologies(topology, slices, count, kind):
    found = devices(topology, slices)
    assert len(found) == count
    assert {d.device_kind for d in found} == {kind}
    assert len({getattr(d, 'slice_index', 0) for d in found}) == slices


@needs_libtpu
def test_a_machine_without_tpu_and_with_nothing_set_is_left_alone():
    """No word of libtpu, no look for a TPU or GPU, and what is computed is computed on CPU."""
    code = (
        'import jax; from jaxtrain.costs.topology import devices; '
        'print(len(devices("v5e:2x2")), jax.config.jax_platforms, jax.numpy.ones(3).sum())'
    )
    unset = ('JAX_PLATFORMS', 'XLA_FLAGS')
    env = {k: v for k, v in os.environ.items() if k not in unset and not k.startswith('TPU_')}
    done = subprocess.run(
        [sys.executable, '-c', code], env=env, cwd=ROOT, text=True, capture_output=True
    )
    assert (done.stdout.split(), done.stderr) == (['4', 'cpu', '3.0'], '')


@pytest.mark.parametrize(
    'topology, slices, words',
    [
        ('v5litepod-16', 1, 'GENERATION:SHAPE'),
        ('v9:2x2', 1, 'GENERATION:SHAPE'),
        ('v5e:2x2x2', 1, 'GENERATION:SHAPE'),
        ('v5p:2x2', 1, 'GENERATION:SHAPE'),
        ('v5e:4x4', 0, 'at least 1'),
        pytest.param('v5e:3x5', 1, 'not divisible', marks=needs_libtpu),
    ],
)
def test_wrong_input(topology, slices, words):
    with pytest.raises(UserError, match=words):
        devices(topology, slices)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jaxtrain\[tpu\]'"):
        devices('v5e:4x4')
