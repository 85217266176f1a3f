"""What is due after which step, and how steps are put together into calls."""

import numpy as np
import pytest

from jaxtrain.loop.schedule import Schedule


def schedule(**changes) -> Schedule:
    values = dict(
        seed=0, steps=20, batch_size=4, eval_batch_size=4, unit=4, log_every=5, eval_every=0,
        save_every=0, steps_per_call=1, keep=1, best_metric='accuracy', threads=1, workers=0,
        prefetch=1, profile=None, budgets={}, val=None, test=None,
    )  # fmt: skip
    return Schedule(**{**values, **changes})


def due(which) -> list[int]:
    return [step for step in range(1, 21) if which(step)]


def test_in_steps():
    plan = schedule(eval_every=6, save_every=0)
    assert due(plan.logs) == [5, 10, 15, 20]
    assert due(plan.evaluates) == [6, 12, 18, 20]
    assert due(plan.saves) == [20]


@pytest.mark.parametrize('examples', [4, 7, 10, 11, 32])
@pytest.mark.parametrize('every', [1, 2])
def test_in_epochs_the_step_that_completes_one(examples, every):
    """Epochs need not end with a batch: 11 examples in batches of 4 end with steps 3, 6, 9, 11."""
    plan = schedule(unit=examples, eval_every=every)
    ends = [-(-epoch * examples // 4) for epoch in range(every, 100, every)]
    assert due(plan.evaluates) == sorted({*(step for step in ends if step <= 20), 20})


def test_one_step_a_call():
    np.testing.assert_array_equal(schedule().calls(3), np.arange(3, 21))


def test_calls_stop_where_something_is_due():
    plan = schedule(steps_per_call=4, eval_every=6, save_every=9)
    assert plan.calls(0).tolist() == [0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 17, 18, 19, 20]
    # Where nothing but the log is due in between, nothing stops.
    assert schedule(steps_per_call=5, log_every=1).calls(0).tolist() == [0, 5, 10, 15, 20]
    assert schedule(steps_per_call=8).calls(0).tolist() == [0, 8, 16, 17, 18, 19, 20]


@pytest.mark.parametrize('several', [2, 3, 7])
def test_a_run_that_resumes_makes_the_same_calls(several):
    """From wherever it stopped, which is the end of a call: the same programs, so the same bits."""
    plan = schedule(steps_per_call=several, eval_every=6, save_every=5)
    whole = plan.calls(0).tolist()
    for place, step in enumerate(whole):
        assert plan.calls(step).tolist() == whole[place:]
