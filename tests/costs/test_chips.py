"""The table of chips is consistent: figures that depend on each other agree."""

from types import SimpleNamespace

import jax
import pytest

from jaxtrain.costs.chips import CHIPS, KINDS, chip_of


@pytest.mark.parametrize(
    'kind, name',
    [
        ('TPU v5 lite', 'TPU v5e'),
        ('TPU v5', 'TPU v5p'),
        ('TPU v6 lite', 'TPU v6e'),
        ('NVIDIA H100 80GB HBM3', 'NVIDIA H100'),
    ],
)
def test_device_kinds_of_jax(kind, name):
    assert chip_of(SimpleNamespace(device_kind=kind)) == CHIPS[name]


def test_cpu_and_unlisted_cards_are_not_in_the_table():
    assert chip_of(jax.devices()[0]) is None
    assert chip_of(SimpleNamespace(device_kind='NVIDIA H100 PCIe')) is None


def test_every_kind_has_a_chip_and_every_chip_a_kind():
    assert set(KINDS.values()) == set(CHIPS)


@pytest.mark.parametrize(
    'name, units, side',
    [('TPU v4', 8, 128), ('TPU v5e', 4, 128), ('TPU v5p', 8, 128), ('TPU v6e', 4, 256)],
)
def test_clock_times_matrix_units_is_the_peak(name, units, side):
    chip = CHIPS[name]
    flops_per_cycle = 2 * units * side * side
    assert chip.clock * flops_per_cycle == pytest.approx(chip.peak_bf16_flops, rel=0.01)
