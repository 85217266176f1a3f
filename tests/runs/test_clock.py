"""Seconds by phase, with a time that each test sets."""

import pytest

from jaxtrain.runs.clock import PHASES, Clock


class Time:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr('jaxtrain.runs.clock.time', time)
    return time


def used(clock: Clock) -> dict[str, float]:
    """Return the phases that have taken time."""
    return {phase: seconds for phase, seconds in clock.read().items() if seconds}


def test_a_phase_counts_only_its_own_time(time):
    clock = Clock()
    time.now += 50  # outside of all phases
    with clock.phase('init'):
        time.now += 3
    time.now += 50
    with clock.phase('init'):
        time.now += 4
    assert used(clock) == {'init': 7}
    assert set(clock.read()) == set(PHASES)


def test_inner_phases_do_not_count_for_the_outer(time):
    clock = Clock()
    with clock.phase('train'):
        time.now += 1
        with clock.phase('eval'):
            time.now += 10
            with clock.phase('data_wait'):
                time.now += 100
            time.now += 10
        time.now += 2
        with clock.phase('data_wait'):
            time.now += 100
    assert used(clock) == {'train': 3, 'eval': 20, 'data_wait': 200}
    assert sum(clock.read().values()) == time.now - 100


def test_reading_counts_an_open_phase_up_to_now(time):
    clock = Clock()
    with clock.phase('save'):
        time.now += 2
        assert used(clock) == {'save': 2}
        time.now += 3
        assert used(clock) == {'save': 5}
    assert used(clock) == {'save': 5}


def test_a_reading_does_not_change_later(time):
    clock = Clock()
    before = clock.read()
    with clock.phase('train'):
        time.now += 1
    clock.read()
    assert before['train'] == 0


def test_an_exception_closes_its_phase(time):
    clock = Clock()
    with clock.phase('train'):
        with pytest.raises(KeyError), clock.phase('eval'):
            time.now += 1
            raise KeyError
        time.now += 5
    assert used(clock) == {'train': 5, 'eval': 1}


def test_earlier_starts_of_a_run_count(time):
    clock = Clock({'train': 10.0})
    with clock.phase('train'):
        time.now += 1
        clock.add({'train': 100.0, 'save': 7.0})
        time.now += 1
    assert used(clock) == {'train': 112, 'save': 7}


def test_the_given_seconds_are_not_modified(time):
    before = {'train': 10.0}
    clock = Clock(before)
    clock.add({'train': 1.0})
    assert before == {'train': 10.0}
