"""Averages over windows of steps, read a few steps late and never lost."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.loop.tracking import IN_FLIGHT, Tracker


class Scalar:
    """A metric that notes when the host begins to copy it and when it waits for it."""

    def __init__(self, value: float, events: list, step: int):
        self.value, self.events, self.step = value, events, step

    def copy_to_host_async(self):
        self.events.append(('copy', self.step))

    def __array__(self, dtype=None, copy=None):
        self.events.append(('wait', self.step))
        return np.array(self.value)


def every(steps):
    return lambda step: step % steps == 0


def follow(losses, log_every, window=None, first=1):
    """Pushes steps, drains, and returns the emitted lines and the tracker."""
    lines = []
    tracker = Tracker(every(log_every), lambda step, means: lines.append((step, means)), window)
    for step, loss in enumerate(losses, first):
        tracker.push(step, {'loss': jnp.float32(loss), 'accuracy': jnp.float32(loss / 2)})
    tracker.drain()
    return lines, tracker


def test_windows_are_averaged_exactly():
    lines, tracker = follow(range(1, 12), log_every=4)
    assert lines == [
        (4, {'loss': (1 + 2 + 3 + 4) / 4, 'accuracy': (1 + 2 + 3 + 4) / 8}),
        (8, {'loss': (5 + 6 + 7 + 8) / 4, 'accuracy': (5 + 6 + 7 + 8) / 8}),
    ]
    assert tracker.means == lines[-1][1]
    assert tracker.window == {'loss': 9 + 10 + 11, 'accuracy': (9 + 10 + 11) / 2, 'steps': 3}


def test_a_step_is_read_only_when_later_ones_are_on_their_way():
    events = []
    tracker = Tracker(every(1), lambda step, means: None)
    for step in range(1, IN_FLIGHT + 3):
        tracker.push(step, {'loss': Scalar(1.0, events, step)})
        waited = [number for kind, number in events if kind == 'wait']
        assert waited == list(range(1, step - IN_FLIGHT + 1))
        assert ('copy', step) in events
    tracker.drain()
    assert [number for kind, number in events if kind == 'wait'] == list(range(1, IN_FLIGHT + 3))


@pytest.mark.parametrize('cut', [1, 3, 5, 7])
def test_a_run_saved_within_a_window_goes_on_in_it(cut):
    losses = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    whole, _ = follow(losses, log_every=5)
    before, tracker = follow(losses[:cut], log_every=5)
    after, _ = follow(losses[cut:], log_every=5, window=tracker.window, first=cut + 1)
    assert before + after == whole


def test_window_is_a_copy():
    _, tracker = follow([1, 2], log_every=5)
    tracker.window['loss'] = 100.0
    assert tracker.window['loss'] == 3


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), float('-inf')])
def test_loss_that_is_not_finite_stops_the_run(bad):
    with pytest.raises(UserError, match=rf'the loss is {bad} at step 3;.*config\.optim\.lr'):
        follow([1, 1, bad, 1], log_every=1)


def test_loss_that_is_not_finite_is_noticed_within_a_few_steps():
    tracker = Tracker(every(100), lambda step, means: None)
    tracker.push(1, {'loss': jnp.float32('nan')})
    with pytest.raises(UserError, match='step 1;'):
        for step in range(2, 2 + IN_FLIGHT):
            tracker.push(step, {'loss': jnp.float32(1)})


def test_nothing_of_a_bad_step_is_emitted():
    lines = []
    tracker = Tracker(every(1), lambda step, means: lines.append(step))
    for step, loss in ((1, 1.0), (2, float('nan')), (3, 1.0)):
        tracker.push(step, {'loss': jnp.float32(loss)})
    with pytest.raises(UserError):
        tracker.drain()
    assert lines == [1]
