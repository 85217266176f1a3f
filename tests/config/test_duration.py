"""Durations as text."""

import pytest

from jaxtrain.config.durations import Run, steps_of
from jaxtrain.errors import UserError

RUN = Run(steps=1000, batch_size=32, examples=100)


@pytest.mark.parametrize(
    ('text', 'steps'),
    [
        ('500 steps', 500),
        ('500', 500),
        ('1 step', 1),
        ('2 epochs', 7),  # 200 examples of 32
        ('0.32 epochs', 1),  # 32 examples
        ('1 epoch', 4),
        ('64 examples', 2),
        ('65 examples', 3),
        ('1e4 examples', 313),
        ('5%', 50),
        ('2.55 %', 26),
        ('0 steps', 0),
    ],
)
def test_steps(text, steps):
    assert steps_of(text, 'config.x', RUN) == steps


def test_rounding_errors_do_not_add_a_step():
    """0.07 * 100 is 7.000000000000001."""
    assert steps_of('7%', 'config.x', Run(100, 1, 1)) == 7


@pytest.mark.parametrize(
    'text', ['', 'steps', '-5 steps', '-5', '5 minutes', '5 % steps', '5%s', '1e steps']
)
def test_malformed_durations(text):
    with pytest.raises(UserError, match="config.x=.* is not a duration; write it like '500 steps'"):
        steps_of(text, 'config.x', RUN)
