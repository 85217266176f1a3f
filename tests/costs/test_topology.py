"""The devices of slices that are not attached."""

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
        ('v4:2x2x2', 1, 8, 'TPU v4'),  # One device per chip, not per core.
        ('v5e:4x4', 2, 32, 'TPU v5 lite'),
        ('v5p:2x2x1', 1, 4, 'TPU v5'),
        ('v6e:2x4', 1, 8, 'TPU v6 lite'),
    ],
)
def test_known_topologies(topology, slices, count, kind):
    slice_devices = devices(topology, slices)
    assert len(slice_devices) == count
    assert {d.device_kind for d in slice_devices} == {kind}
    assert len({getattr(d, 'slice_index', 0) for d in slice_devices}) == slices


@needs_libtpu
def test_a_machine_without_tpu_and_settings_is_not_affected():
    """libtpu prints nothing, no TPU or GPU is searched for, and computation runs on CPU."""
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


def test_without_the_compiler_the_error_gives_the_package(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jaxtrain\[tpu\]'"):
        devices('v5e:4x4')
