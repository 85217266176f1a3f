"""How fast a run says that it is."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest

from jaxtrain.loop import train as loop
from jaxtrain.loop.progress import Work, speed
from jaxtrain.parallel.mesh import Compiled
from jaxtrain.runs.clock import PHASES
from jaxtrain.runs.run import read_metrics
from tests.conftest import TINY

NOTHING = dict.fromkeys(PHASES, 0.0)


def test_speed():
    """10 steps of 32 examples in 4 s of training and 1 s of waiting; then 3 s and 2 s of others."""
    before = NOTHING | {'train': 100.0, 'init': 7.0}
    now = before | {'train': 104.0, 'data_wait': 1.0, 'eval': 3.0, 'save': 2.0}
    work = Work('examples', 32, flops=1e9, peak=1e10)
    found = speed(before, now, 10, work)
    assert found == pytest.approx(
        {
            'steps_per_s': 2.0,
            'examples_per_s': 64.0,
            'mfu': 0.2,  # 2 steps of 1 GFLOP a second, of 10 GFLOP/s
            'data_wait': 0.2,
            'eval_share': 0.3,
            'save_share': 0.2,
        }
    )


def test_no_mfu_where_the_peak_is_not_known():
    work = Work('tokens', 512, flops=1e9, peak=0.0)
    found = speed(NOTHING, NOTHING | {'train': 1.0}, 1, work)
    assert 'mfu' not in found and found['tokens_per_s'] == 512


CHIP = SimpleNamespace(peak_bf16_flops=1e12)
IMAGES, TEXT = (SimpleNamespace(shape=(16,) * n, tokenizer=n == 1) for n in (3, 1))


@pytest.mark.parametrize(
    ('chip', 'remat', 'train', 'expected'),
    [
        (CHIP, 'none', IMAGES, Work('examples', 4, 8e9, 8e12)),
        # Each example has 16 tokens; what remat recomputes does not count.
        (CHIP, 'full', TEXT, Work('tokens', 64, 5e9, 8e12)),
        (None, 'full', IMAGES, Work('examples', 4, 8e9, 0.0)),
    ],
)
def test_what_a_step_is_worth(chip, remat, train, expected, monkeypatch):
    """The programs are for 2 and for 4 steps, on 8 devices."""
    monkeypatch.setattr(loop, 'chip_of', lambda device: chip)
    mesh = SimpleNamespace(devices=np.empty(8), size=8)
    model = SimpleNamespace(remat=remat)
    job = SimpleNamespace(mesh=mesh, model=model, train=train, model_flops=lambda: 5e9)
    programs = {count: Compiled(print, 8e9 * count) for count in (4, 2)}
    assert loop._work(job, SimpleNamespace(batch_size=4), programs) == expected


@pytest.fixture(scope='module')
def traced(tmp_path_factory):
    """A run with a trace of steps 8 to 12, handed over five at a time."""
    from jaxtrain.cli import main

    workdir = tmp_path_factory.mktemp('traced') / 'run'
    words = (f'--config={TINY}:full', '--config.steps=20', '--config.profile=(8,12)')
    more = ('--config.steps_per_call=5', '--config.eval_every=20')
    assert main(['train', *words, *more, f'--workdir={workdir}']) == 0
    return workdir


def test_a_run_says_how_fast_it_was(traced):
    """The times in the log add up to the seconds in result.json."""
    lines = [line for line in read_metrics(traced) if line['split'] == 'train']
    assert [line['step'] for line in lines] == [5, 10, 15, 20]
    for line in lines:
        assert line['examples_per_s'] == pytest.approx(32 * line['steps_per_s'])
        assert 'mfu' not in line  # nothing is known of this device's peak
    seconds = json.loads((traced / 'result.json').read_text())['seconds']
    training = [5 / line['steps_per_s'] for line in lines]
    waited = sum(t * line['data_wait'] for t, line in zip(training, lines, strict=True))
    # A little is spent after the last line.
    assert 0.5 * seconds['data_wait'] < waited <= seconds['data_wait'] + 1e-6
    whole = seconds['train'] + seconds['data_wait']
    assert 0.5 * whole < sum(training) <= whole + 1e-6


def test_trace_opens_in_perfetto(traced):
    """Chrome's trace format: events with names and times, those of the step among them."""
    (file,) = (traced / 'profile').rglob('perfetto_trace.json.gz')
    with gzip.open(file) as f:
        events = json.load(f)['traceEvents']
    assert len([e for e in events if e.get('ph') == 'X' and e['dur'] >= 0]) > 100
    # The calls of steps 6 to 10 and 11 to 15, and no others.
    calls = [event['args']['step_num'] for event in events if event.get('name') == 'train']
    assert sorted(map(int, calls)) == [5, 10]
    assert list((traced / 'profile').rglob('*.xplane.pb'))


@pytest.mark.parametrize('value', ['(3,)', '(0,2)', '(5,2)', '(1,99)', "('a','b')"])
def test_wrong_steps_to_trace(value, jaxtrain, tmp_path):
    outcome = jaxtrain(
        'train', f'--config={TINY}', f'--config.profile={value}', f'--workdir={tmp_path}/w'
    )
    assert outcome.code == 2
    assert 'config.profile=' in outcome.err and 'of the steps 1 to 20' in outcome.err
