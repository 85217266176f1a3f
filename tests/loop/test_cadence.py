"""What is due after which step, and how steps are grouped into calls."""

import itertools
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from jax.sharding import AbstractMesh

from jaxtrain.config import Config
from jaxtrain.data.pipeline import Reading
from jaxtrain.errors import UserError
from jaxtrain.loop.cadence import Cadence, make_cadence
from jaxtrain.parallel.mesh import AXES
from jaxtrain.tasks.task import LOSS
from tests.configs.tiny import get_config
from tests.support.inputs import image_source


def cadence(**changes) -> Cadence:
    values = dict(
        steps=20, batch_size=4, eval_batch_size=4, unit=4, log_every=5, eval_every=0,
        save_every=0, steps_per_call=1, keep=1, best_metric=None, reading=Reading(),
        profile=None, budgets={}, val=None, test=None,
    )  # fmt: skip
    return Cadence(**{**values, **changes})


def due(which) -> list[int]:
    return [step for step in range(1, 21) if which(step)]


def test_units_of_steps():
    plan = cadence(eval_every=6, save_every=0)
    assert due(plan.logs) == [5, 10, 15, 20]
    assert due(plan.evaluates) == [6, 12, 18, 20]
    assert due(plan.saves) == [20]


@pytest.mark.parametrize('examples', [4, 7, 10, 11, 32])
@pytest.mark.parametrize('every', [1, 2])
def test_units_of_epochs_are_due_at_the_step_that_completes_one(examples, every):
    """Epochs need not end with a batch: 11 examples in batches of 4 end with steps 3, 6, 9, 11."""
    plan = cadence(unit=examples, eval_every=every)
    ends = [-(-epoch * examples // 4) for epoch in range(every, 100, every)]
    assert due(plan.evaluates) == sorted({*(step for step in ends if step <= 20), 20})


def test_one_step_per_call():
    np.testing.assert_array_equal(cadence().calls(3), np.arange(3, 21))


def test_calls_end_where_something_is_due():
    plan = cadence(steps_per_call=4, eval_every=6, save_every=9)
    assert list(plan.calls(0)) == [0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 17, 18, 19, 20]
    # The log alone does not end a call.
    assert list(cadence(steps_per_call=5, log_every=1).calls(0)) == [0, 5, 10, 15, 20]
    assert list(cadence(steps_per_call=8).calls(0)) == [0, 8, 16, 17, 18, 19, 20]


@pytest.mark.parametrize('several', [2, 3, 7])
def test_a_run_that_resumes_makes_the_same_calls(several):
    """A run stops at the end of a call, so that it resumes with the same programs and bits."""
    plan = cadence(steps_per_call=several, eval_every=6, save_every=5)
    whole = list(plan.calls(0))
    for place, step in enumerate(whole):
        assert list(plan.calls(step)) == whole[place:]


@pytest.mark.parametrize('several', [1, 2, 3, 7])
@pytest.mark.parametrize('unit', [4, 11])
def test_calls_are_those_of_a_walk_along_the_steps(several, unit):
    plan = cadence(steps=97, steps_per_call=several, unit=unit, eval_every=3, save_every=5)
    for first in (0, 9, 96, 97):
        bounds = [first]
        while bounds[-1] < plan.steps:
            inside = range(bounds[-1] + 1, bounds[-1] + several)
            whole = bounds[-1] + several <= plan.steps and not any(map(plan.stops, inside))
            bounds.append(bounds[-1] + (several if whole else 1))
        assert list(plan.calls(first)) == bounds
        sizes = sorted({end - begin for begin, end in itertools.pairwise(bounds)})
        assert plan.calls(first).counts == (sizes or [1])


def test_calls_of_a_long_run_take_no_memory():
    tracemalloc.start()
    calls = cadence(steps=3 * 10**8, eval_every=10**5, steps_per_call=7).calls(10)
    assert calls[len(calls) - 1] == 3 * 10**8
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def made(devices: int = 1, **changes) -> tuple[Cadence, list]:
    """The cadence of tiny.py with changes, and (split, key, classes) of each opened source."""
    cfg = Config(get_config().to_dict()).replace(**changes)
    mesh = AbstractMesh((devices, 1, 1), AXES)
    train = image_source(50, (8, 8, 1), ('a', 'b'))
    job = SimpleNamespace(layout=SimpleNamespace(mesh=mesh), train=train, steps=20)
    opened = []

    def opens(data, split, key, classes):
        opened.append((split, key, classes))
        return f'source of {split}'

    return make_cadence(cfg, job, opens), opened


def test_a_cadence_has_the_values_of_the_config():
    plan, opened = made(
        batch_size=8, save_every=3, keep=2, steps_per_call=5, profile=(2, 4),
        best_metric='loss', data__threads=3, data__workers=1, data__prefetch=6,
        budgets__step=1.0, budgets__compile=0.0, budgets__restore=3.0, budgets__eval=4.0,
        budgets__save=5.0,
    )  # fmt: skip
    assert plan == Cadence(
        steps=20, batch_size=8, eval_batch_size=8, unit=8, log_every=5, eval_every=10,
        save_every=3, steps_per_call=5, profile=(2, 4), keep=2, best_metric=LOSS,
        reading=Reading(threads=3, ahead=6, workers=1), val='source of val', test='source of test',
        # A budget of 0 is no budget; waiting for data counts as part of a step.
        budgets={'restore': 3.0, 'eval': 4.0, 'save': 5.0, 'train': 1.0, 'data_wait': 1.0},
    )  # fmt: skip
    classes = ('a', 'b')
    assert opened == [('val', 'config.data.val', classes), ('test', 'config.data.test', classes)]


def test_units_and_the_batch_size_of_evaluations():
    plan, opened = made(every='epochs', eval_batch_size=12, data__val='', data__test='')
    assert (plan.unit, plan.eval_batch_size, plan.batch_size) == (50, 12, 32)
    assert (plan.val, plan.test, opened) == (None, None, [])
    assert not plan.validates(20) and made()[0].validates(20)


@pytest.mark.parametrize(
    ('changes', 'key'),
    [
        ({'log_every': 0}, 'config.log_every=0'),
        ({'eval_every': -1}, 'config.eval_every=-1'),
        ({'save_every': -1}, 'config.save_every=-1'),
        ({'eval_batch_size': -1}, 'config.eval_batch_size=-1'),
        ({'keep': 0}, 'config.keep=0'),
        ({'steps_per_call': 0}, 'config.steps_per_call=0'),
        ({'data__workers': -1}, 'config.data.workers=-1'),
        ({'budgets__step': -1.0}, 'config.budgets.step=-1.0'),
        ({'budgets__save': -1.0}, 'config.budgets.save=-1.0'),
        ({'every': 'step'}, "config.every='step'"),
        ({'best_metric': 'f1'}, "config.best_metric='f1'"),
    ],
)
def test_values_out_of_range(changes, key):
    with pytest.raises(UserError) as caught:
        made(**changes)
    assert str(caught.value).startswith(key)


def test_the_smallest_values():
    least = dict(log_every=1, eval_every=0, save_every=0, eval_batch_size=0, keep=1)
    plan, _ = made(**least, data__workers=0, budgets__step=0.0)
    assert (plan.reading.workers, plan.budgets.keys() & {'train', 'data_wait'}) == (0, set())


def test_devices_must_share_evaluation_batches_evenly():
    with pytest.raises(UserError) as caught:
        made(devices=2, eval_batch_size=3)
    assert 'config.eval_batch_size=3' in str(caught.value) and '2 devices' in str(caught.value)
    assert made(devices=2, eval_batch_size=4)[0].eval_batch_size == 4
