"""The timeline of a run: which events are written, over several starts, and when none are."""

import pytest

from jaxtrain import storage
from jaxtrain.errors import Preempted, UserError
from jaxtrain.runs import events
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.events import Timeline


def begun(workdir, writes: bool = True) -> Timeline:
    timeline = Timeline(workdir, writes)
    timeline.begin(Clock(), steps=60, processes=2, devices=4, git='abc')
    timeline.open()
    return timeline


def lines(workdir) -> list[dict]:
    return storage.read_lines(workdir / 'events.jsonl')


def test_starts_are_counted_and_earlier_events_are_kept(tmp_path):
    for _ in range(3):
        with begun(tmp_path) as timeline:
            timeline.add('eval', seconds=1.5)
    events_read = lines(tmp_path)
    assert [line['event'] for line in events_read] == ['start', 'eval', 'exit'] * 3
    assert [line['start'] for line in events_read] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    begin, evaluated, end = events_read[:3]
    assert begin | {'processes': 2, 'devices': 4, 'git': 'abc', 'steps': 60} == begin
    assert evaluated['seconds'] == 1.5 and end['code'] == 0


def test_a_truncated_line_of_a_killed_start_is_dropped(tmp_path):
    begun(tmp_path)
    with (tmp_path / 'events.jsonl').open('a') as file:
        file.write('{"event": "tra')
    begun(tmp_path)
    assert [line['start'] for line in lines(tmp_path)] == [0, 1]


@pytest.mark.parametrize(
    'error, code, why',
    [
        (UserError('the loss is nan'), 2, 'the loss is nan'),
        (Preempted('stopped at step 7'), 42, 'stopped at step 7'),
        (ZeroDivisionError('by zero'), 1, 'ZeroDivisionError: by zero'),
        (KeyboardInterrupt(), 130, 'KeyboardInterrupt'),
    ],
)
def test_the_exit_has_its_reason(error, code, why, tmp_path):
    with pytest.raises(type(error)), begun(tmp_path):
        raise error
    last = lines(tmp_path)[-1]
    assert (last['event'], last['code'], last['why']) == ('exit', code, why)


def test_nothing_is_written_before_the_run_begins_nor_by_other_processes(tmp_path):
    timeline = Timeline(tmp_path)
    timeline.phase('init', None)
    timeline.end('wrong config', 2)
    begun(tmp_path, writes=False).add('eval')
    assert not list(tmp_path.iterdir())


def test_events_are_held_until_the_weights_have_been_checked(tmp_path):
    with pytest.raises(UserError), Timeline(tmp_path) as timeline:
        timeline.begin(Clock(), steps=60, processes=1, devices=1, git=None)
        raise UserError('the weights are nan')
    assert not list(tmp_path.iterdir())
    with Timeline(tmp_path) as timeline:
        timeline.begin(Clock(), steps=60, processes=1, devices=1, git=None)
        timeline.add('restore', seconds=1.0)
        timeline.open()
    assert [line['event'] for line in lines(tmp_path)] == ['start', 'restore', 'exit']


def test_phases_are_written_with_their_step_and_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr('jaxtrain.runs.clock.time.perf_counter', lambda: now[0])
    timeline = Timeline(tmp_path)
    clock = Clock(listener=timeline.phase)
    timeline.begin(clock, steps=60, processes=1, devices=1, git=None)
    timeline.open()
    with clock.phase('train'):  # encloses the others and has no event of its own
        clock.step = 20
        with clock.phase('save'):
            now[0] += 2.5
        with pytest.raises(ValueError), clock.phase('eval'):
            raise ValueError
    written = [
        (x['event'], x.get('phase'), x['step'], x.get('seconds')) for x in lines(tmp_path)[1:]
    ]
    assert written == [
        ('begin', 'save', 20, None),
        ('save', None, 20, 2.5),
        ('begin', 'eval', 20, None),  # it did not end
    ]


def test_train_and_alive_events_are_rate_limited(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr('jaxtrain.runs.events.time.monotonic', lambda: now[0])
    timeline = begun(tmp_path)
    for step in range(1, 31):
        now[0] += 1
        timeline.trained(step)
        timeline.alive()
    assert [x['step'] for x in lines(tmp_path) if x['event'] == 'train'] == [1, 12, 23]
    now[0] += events.ALIVE_EVERY
    timeline.alive()
    timeline.alive()
    assert [x['event'] for x in lines(tmp_path)][-2:] == ['train', 'alive']


def test_reached_is_the_last_step_of_earlier_starts(tmp_path):
    timeline = begun(tmp_path)
    timeline.add('train', step=35)
    timeline.add('save', step=28)
    assert begun(tmp_path).reached == 35
