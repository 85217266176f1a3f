"""The status of a run: timelines whose sums can be computed by hand, and a real run."""

import json
import signal
import time

import pytest

from jaxtrain.inspection import status as states
from jaxtrain.inspection.status import Contents, summarize
from jaxtrain.inspection.status_text import spell, to_text
from tests.conftest import TINY, start

T0 = 1_000_000.0


def events(number: int, begin: float, *rest: tuple, steps: int = 100) -> list[dict]:
    """A start whose init took 2 s, restore 1 s, compile 4 s; then (event, time, step, values)."""
    where = {'processes': 2, 'devices': 8, 'host': 'far', 'pid': 7, 'git': 'abc', 'steps': steps}
    resumed = rest[0][2] if rest and rest[0][0] == 'resumed' else 0
    rest = rest[1:] if rest and rest[0][0] == 'resumed' else rest
    head = [
        ('start', begin, 0, where),
        ('init', begin, 0, {'seconds': 2.0}),
        ('begin', begin, 0, {'phase': 'restore'}),
        ('restore', begin + 1, resumed, {'seconds': 1.0}),
        ('begin', begin + 1, resumed, {'phase': 'compile'}),
        ('compile', begin + 5, resumed, {'seconds': 4.0}),
    ]
    return [
        {
            'event': event,
            'time': T0 + at,
            'start': number,
            'step': step,
            **(more[0] if more else {}),
        }
        for event, at, step, *more in (*head, *rest)
    ]


def status_of(events: list[dict], logged=0, now=0.0, alive=False, saved=(), best=None):
    return summarize(Contents('run', events, logged, list(saved), best), T0 + now, alive)


def test_a_running_run():
    result = status_of(events(0, 0, ('train', 25, 40)), logged=45, now=30, alive=True)
    assert (result.state, result.doing, result.for_seconds, result.heard) == (
        'running',
        'train',
        5,
        5,
    )
    assert (result.step, result.steps, result.starts) == (45, 100, 1)
    assert result.steps_per_s == pytest.approx(2.0)  # 40 steps in the 20 s after the compile
    assert result.seconds_left == pytest.approx(55 / 2)
    assert result.seconds == {
        'train': 25.0, 'lost': 0.0, 'init': 2.0, 'restore': 1.0, 'compile': 4.0, 'eval': 0.0,
        'save': 0.0, 'other': 0.0, 'down': 0.0,
    }  # fmt: skip
    assert result.goodput == pytest.approx(25 / 32)
    assert result.stops == []


def test_evaluations_and_checkpoints_do_not_count_as_training():
    saving = [('save', 28, 20, {'seconds': 3.0}), ('eval', 30, 20, {'seconds': 2.0})]
    result = status_of(events(0, 0, *saving), now=35, alive=True)
    assert (result.seconds['train'], result.seconds['save'], result.seconds['eval']) == (25, 3, 2)
    # The speed includes evaluations, since it predicts when the run will finish.
    assert result.steps_per_s == pytest.approx(20 / 23)


def test_a_killed_run_that_resumes_with_lost_steps():
    """60 steps in 30 s, of which the checkpoint has 40; then 20 s without a process."""
    killed = events(0, 0, ('train', 35, 60))
    again = events(1, 57, ('resumed', 0, 40), ('lost', 58, 40, {'steps': 20}), ('train', 72, 60))
    result = status_of(killed + again, now=72, alive=True)
    assert result.seconds['train'] == pytest.approx(20 + 10)
    assert result.seconds['lost'] == pytest.approx(10)
    assert result.seconds['down'] == pytest.approx(20)  # 35 to 55, where its init began
    assert sum(result.seconds.values()) == pytest.approx(72 + 2)  # the first init was before 0
    (stop,) = result.stops
    assert (stop.code, stop.step, stop.lost) == (None, 60, 20)
    assert 'killed in train' in stop.why


@pytest.mark.parametrize(
    'rest, phase',
    [
        ([('begin', 9, 20, {'phase': 'save'})], 'save'),
        ([('begin', 9, 20, {'phase': 'eval'})], 'eval'),
        ([('alive', 70, 20, {'phase': 'data_wait', 'seconds': 60.0})], 'data_wait'),
        ([], 'train'),
    ],
)
def test_the_phase_in_which_a_run_was_killed(rest, phase):
    assert f'killed in {phase}' in status_of(events(0, 0, *rest)).stops[0].why
    running = status_of(events(0, 0, *rest), now=75, alive=True)
    assert running.doing == phase
    if phase == 'data_wait':
        assert running.for_seconds == 65  # counted from 60 s before the event


@pytest.mark.parametrize(
    'code, state', [(0, 'finished'), (42, 'stopped'), (2, 'failed'), (1, 'failed')]
)
def test_how_a_run_ended(code, state):
    result = status_of(events(0, 0, ('exit', 25, 40, {'code': code, 'why': 'so it was'})), now=9999)
    assert result.state == state and result.seconds_left is None and result.doing == ''
    assert (result.stops[0].code, result.stops[0].why) == (code, 'so it was')
    assert result.seconds['train'] == 20  # up to the exit, not up to now
    text = to_text(result)
    assert text.startswith(f'run: {state}, step 40 of 100 (40%)')
    assert ('so it was' in text) == (code != 0)


def test_before_the_first_checkpoint_is_read():
    result = status_of(events(0, 0)[:3], now=6, alive=True)
    assert (result.doing, result.step, result.steps_per_s) == ('restore', 0, 0)
    assert 'running' in to_text(result) and 'speed' not in to_text(result)


def test_the_text_is_complete():
    killed = events(0, 0, ('train', 35, 60))
    again = events(1, 57, ('resumed', 0, 40), ('lost', 58, 40, {'steps': 20}), ('train', 72, 60))
    text = to_text(status_of(killed + again, now=72, alive=True, saved=[20, 40], best=20))
    for part in ('in train', 'goodput', '20 steps were repeated', 'steps 20, 40; best 20',
                 '2 process(es) with 8 device(s)', 'about 20 s'):  # fmt: skip
        assert part in text, text


@pytest.mark.parametrize(
    'seconds, text',
    [(0.4, '0 s'), (59, '59 s'), (61, '1 min 1 s'), (3720, '1 h 2 min'), (90000, '1 d 1 h')],
)
def test_durations(seconds, text):
    assert spell(seconds) == text


def test_age_decides_if_the_process_is_on_another_machine():
    old = events(0, time.time() - T0 - states.SILENT - 60)
    new = events(0, time.time() - T0 - 30)
    assert states.is_alive(new) and not states.is_alive(old)


def test_a_real_run(tmp_path, jaxtrain):
    """Its status while it runs, and after it is killed."""
    workdir = tmp_path / 'run'
    words = ['train', f'--config={TINY}:full', f'--workdir={workdir}', '--config.save_every=10']

    def state() -> dict:
        return json.loads(jaxtrain('status', f'--workdir={workdir}', '--json').out)

    process = start(*words, '--config.steps=100000')
    deadline = time.time() + 120
    while not (workdir / 'checkpoints' / '10').exists() and time.time() < deadline:
        time.sleep(0.02)
    running = state()
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = state()
    assert (running['state'], killed['state']) == ('running', 'killed')
    assert running['seconds_left'] > 0 and running['steps'] == 100000
    assert killed['step'] >= 10 and killed['saved'] and killed['stops'][0]['code'] is None
    outcome = jaxtrain('status', f'--workdir={workdir}')
    assert outcome.code == 0 and f'{workdir}: killed, step ' in outcome.out


def test_a_folder_without_a_timeline(tmp_path, jaxtrain):
    outcome = jaxtrain('status', f'--workdir={tmp_path}')
    assert outcome.code == 2 and outcome.err.count('\n') == 1 and 'events.jsonl' in outcome.err
