"""The recorder: averages over windows, read a few steps late and never lost; the reported speed;
the best step so far.
"""

import gzip
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.loop import train as loop
from jaxtrain.loop.recorder import IN_FLIGHT, Averages, Recorder, Work, speed
from jaxtrain.parallel.compile import Compiled
from jaxtrain.runs.clock import PHASES
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.tasks.classify import ACCURACY
from tests.conftest import TINY
from tests.loop.test_cadence import cadence

NOTHING = dict.fromkeys(PHASES, 0.0)


def test_speed():
    """10 steps of 32 examples in 4 s of training, 1 s of data wait, and 5 s of other phases."""
    before = NOTHING | {'train': 100.0, 'init': 7.0}
    now = before | {'train': 104.0, 'data_wait': 1.0, 'eval': 3.0, 'save': 2.0}
    work = Work('examples', 32, flops=1e9, peak=1e10)
    result = speed(before, now, 10, work)
    assert result == pytest.approx(
        {
            'steps_per_s': 2.0,
            'examples_per_s': 64.0,
            'mfu': 0.2,  # 2 steps of 1 GFLOP a second, of 10 GFLOP/s
            'data_wait': 0.2,
            'eval_share': 0.3,
            'save_share': 0.2,
        }
    )


def test_no_mfu_if_the_peak_is_unknown():
    work = Work('tokens', 512, flops=1e9, peak=0.0)
    result = speed(NOTHING, NOTHING | {'train': 1.0}, 1, work)
    assert 'mfu' not in result and result['tokens_per_s'] == 512


CHIP = SimpleNamespace(peak_bf16_flops=1e12)
IMAGES, TEXT = SimpleNamespace(tokens=0), SimpleNamespace(tokens=16)


@pytest.mark.parametrize(
    ('chip', 'remat', 'train', 'expected'),
    [
        (CHIP, 'none', IMAGES, Work('examples', 4, 8e9, 8e12)),
        # Each example has 16 tokens; what remat recomputes does not count.
        (CHIP, 'full', TEXT, Work('tokens', 64, 5e9, 8e12)),
        (None, 'full', IMAGES, Work('examples', 4, 8e9, 0.0)),
    ],
)
def test_the_work_in_a_step(chip, remat, train, expected, monkeypatch):
    """The programs are for 2 and for 4 steps, on 8 devices."""
    monkeypatch.setattr(loop, 'chip_of', lambda device: chip)
    mesh = SimpleNamespace(devices=np.empty(8), size=8)
    job = SimpleNamespace(
        layout=SimpleNamespace(mesh=mesh),
        learner=SimpleNamespace(model=SimpleNamespace(remat=remat)),
        train=train,
        model_flops=lambda: 5e9,
    )
    steps = {count: Compiled(print, 8e9 * count) for count in (4, 2)}
    programs = loop.Programs(np.arange(2), steps, print)
    assert loop._work(job, SimpleNamespace(batch_size=4), programs) == expected


@pytest.fixture(scope='module')
def traced(tmp_path_factory):
    """A run with five steps per call and a trace of steps 8 to 12."""
    from jaxtrain.cli import main

    workdir = tmp_path_factory.mktemp('traced') / 'run'
    words = (f'--config={TINY}:full', '--config.steps=20', '--config.profile=(8,12)')
    more = ('--config.steps_per_call=5', '--config.eval_every=20')
    assert main(['train', *words, *more, f'--workdir={workdir}']) == 0
    return workdir


def test_the_speed_in_the_log(traced):
    """The times in the log add up to the seconds in result.json."""
    lines = [line for line in read_metrics(traced) if line['split'] == 'train']
    assert [line['step'] for line in lines] == [5, 10, 15, 20]
    for line in lines:
        assert line['examples_per_s'] == pytest.approx(32 * line['steps_per_s'])
        assert 'mfu' not in line  # the peak of this device is unknown
    seconds = json.loads((traced / 'result.json').read_text())['seconds']
    training = [5 / line['steps_per_s'] for line in lines]
    waited = sum(t * line['data_wait'] for t, line in zip(training, lines, strict=True))
    # A little is spent after the last line.
    assert 0.5 * seconds['data_wait'] < waited <= seconds['data_wait'] + 1e-6
    whole = seconds['train'] + seconds['data_wait']
    assert 0.5 * whole < sum(training) <= whole + 1e-6


def test_the_trace_has_the_format_of_perfetto(traced):
    """Chrome's trace format: events with names and times, including those of the steps."""
    (file,) = (traced / 'profile').rglob('perfetto_trace.json.gz')
    with gzip.open(file) as f:
        events = json.load(f)['traceEvents']
    assert len([e for e in events if e.get('ph') == 'X' and e['dur'] >= 0]) > 100
    # The calls of steps 6 to 10 and 11 to 15, and no others.
    calls = [event['args']['step_num'] for event in events if event.get('name') == 'train']
    assert sorted(map(int, calls)) == [5, 10]
    assert list((traced / 'profile').rglob('*.xplane.pb'))


@pytest.mark.parametrize('value', ['(3,)', '(0,2)', '(5,2)', '(1,99)', "('a','b')"])
def test_invalid_steps_to_trace(value, jaxtrain, tmp_path):
    outcome = jaxtrain(
        'train', f'--config={TINY}', f'--config.profile={value}', f'--workdir={tmp_path}/w'
    )
    assert outcome.code == 2
    assert 'config.profile=' in outcome.err and 'of the steps 1 to 20' in outcome.err


class Scalar:
    """A metric that records when the host starts to copy it and when it waits for it."""

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
    tracker = Averages(every(log_every), lambda step, means: lines.append((step, means)), window)
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


def test_a_step_is_read_only_after_later_steps_are_dispatched():
    events = []
    tracker = Averages(every(1), lambda step, means: None)
    for step in range(1, IN_FLIGHT + 3):
        tracker.push(step, {'loss': Scalar(1.0, events, step)})
        waited = [number for kind, number in events if kind == 'wait']
        assert waited == list(range(1, step - IN_FLIGHT + 1))
        assert ('copy', step) in events
    tracker.drain()
    assert [number for kind, number in events if kind == 'wait'] == list(range(1, IN_FLIGHT + 3))


@pytest.mark.parametrize('cut', [1, 3, 5, 7])
def test_a_run_saved_within_a_window_continues_it(cut):
    losses = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    whole, _ = follow(losses, log_every=5)
    before, tracker = follow(losses[:cut], log_every=5)
    after, _ = follow(losses[cut:], log_every=5, window=tracker.window, first=cut + 1)
    assert before + after == whole


def test_the_window_is_a_copy():
    _, tracker = follow([1, 2], log_every=5)
    tracker.window['loss'] = 100.0
    assert tracker.window['loss'] == 3


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), float('-inf')])
def test_a_loss_that_is_not_finite_stops_the_run(bad):
    with pytest.raises(UserError, match=rf'the loss is {bad} at step 3;.*config\.optim\.lr'):
        follow([1, 1, bad, 1], log_every=1)


def test_a_loss_that_is_not_finite_is_noticed_within_a_few_steps():
    tracker = Averages(every(100), lambda step, means: None)
    tracker.push(1, {'loss': jnp.float32('nan')})
    with pytest.raises(UserError, match='step 1;'):
        for step in range(2, 2 + IN_FLIGHT):
            tracker.push(step, {'loss': jnp.float32(1)})


def test_nothing_of_a_bad_step_is_emitted():
    lines = []
    tracker = Averages(every(1), lambda step, means: lines.append(step))
    for step, loss in ((1, 1.0), (2, float('nan')), (3, 1.0)):
        tracker.push(step, {'loss': jnp.float32(loss)})
    with pytest.raises(UserError):
        tracker.drain()
    assert lines == [1]


def test_the_best_step_is_chosen_among_the_given_steps():
    recorder = Recorder(lambda step: 0.0, cadence(best_metric=ACCURACY), ['accuracy'])
    assert recorder.best([5, 10]) is None
    recorder.val |= {5: {'accuracy': 0.9}, 10: {'accuracy': 0.5}, 15: {'accuracy': 0.9}}
    assert recorder.ranked([5, 10, 15, 20]) == [15, 5, 10]  # the later of equal steps first
    assert recorder.best([5, 10]) == 5


def test_a_val_loss_that_is_not_finite_is_not_recorded():
    recorder = Recorder(lambda step: 0.0, cadence(), [])
    with pytest.raises(UserError, match=r'the val loss is nan at step 7;.*config\.optim\.lr'):
        recorder.validated(7, {'loss': float('nan')})
    assert recorder.val == {}
