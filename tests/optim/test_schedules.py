"""Learning-rate schedules against their formulas."""

import numpy as np
import pytest

from jaxtrain.optim.schedules import make_schedule
from tests.optim.test_optim import length, settings


@pytest.mark.parametrize('name', ['constant', 'cosine', 'linear'])
@pytest.mark.parametrize('warmup', [0, 4])
def test_schedule_against_its_formula(name, warmup):
    cfg = settings(lr=0.5, warmup=f'{warmup} steps', lr_end=0.1)
    curve = make_schedule(cfg, name, length(20))
    for step in range(21):
        if step < warmup:
            expected = 0.5 * step / warmup
        else:
            done = (step - warmup) / (20 - warmup)
            share = {
                'constant': 1.0,
                'cosine': 0.1 + 0.9 * (1 + np.cos(np.pi * done)) / 2,
                'linear': 1 - 0.9 * done,
            }[name]
            expected = 0.5 * share
        assert float(curve(step)) == pytest.approx(expected, abs=1e-6), step


@pytest.mark.parametrize('cooldown', [0, 5])
def test_rsqrt_against_its_formula(cooldown):
    """lr * sqrt(w / step) after w steps of warm-up; then linear cool-down to lr * lr_end."""
    cfg = settings(lr=0.5, warmup='4 steps', cooldown=f'{cooldown} steps', lr_end=0.1)
    curve = make_schedule(cfg, 'rsqrt', length(20))
    for step in range(21):
        expected = 0.5 * step / 4
        if step >= 4:
            expected = 0.5 * (4 / step) ** 0.5
        if cooldown and step > 15:
            start = 0.5 * (4 / 15) ** 0.5
            expected = start + (0.05 - start) * (step - 15) / 5
        assert float(curve(step)) == pytest.approx(expected, abs=1e-6), step


def test_wsd_against_its_formula():
    """Warm-up of 2 epochs (4 steps), and cool-down over 25% of the run (5 steps)."""
    cfg = settings(lr=0.5, warmup='2 epochs', cooldown='25%', lr_end=0.2)
    curve = make_schedule(cfg, 'wsd', length(20))
    expected = [0, 0.125, 0.25, 0.375, *[0.5] * 12, *(0.5 - 0.08 * n for n in range(1, 6))]
    np.testing.assert_allclose([float(curve(step)) for step in range(21)], expected, atol=1e-6)
