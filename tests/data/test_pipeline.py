"""Tests of batch = f(seed, step): every example once per epoch, in an order fixed by the seed."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.config import Config, base
from jaxtrain.data.features import classified_image
from jaxtrain.data.pipeline import (
    Order,
    Reading,
    Slice,
    check_batch_size,
    eval_batches,
    example_numbers,
    train_batches,
    train_indices,
)
from jaxtrain.data.sources.open import Source, open_source
from jaxtrain.errors import UserError
from jaxtrain.weights.bundle import resolve

SIZE = 23
WHOLE = Slice()
ORDER = Order(batch_size=8, seed=0)
LIMIT = 180  # seconds; processes that take longer to start and end are assumed to hang


def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
    images = np.broadcast_to(indices[:, None, None, None], (len(indices), 2, 2, 1))
    return {'image': images.astype(np.uint8), 'label': indices.astype(np.int32)}


NAMES = tuple(map(str, range(SIZE)))
SOURCE = Source(fetch, SIZE, classified_image(2, 2, 1), 'image', NAMES)


def numbered(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
    return fetch(indices) if numbers is None else {**fetch(indices), 'number': numbers}


def read(source, batch_size=8, seed=0, steps=range(10), part=WHOLE, threads=2, ahead=4, workers=0):
    bounds = range(steps.start, steps.stop + 1)
    batches = train_batches(
        source, bounds, Order(batch_size, seed, part), Reading(threads, ahead, workers)
    )
    result = list(batches)
    batches.close()
    return result


def labels(**options):
    return [batch['label'].tolist() for batch in read(SOURCE, **options)]


def numbers(**options):
    return [batch['number'].tolist() for batch in read(replace(SOURCE, fetch=numbered), **options)]


@pytest.mark.parametrize('batch_size', [1, 5, 8, 23])
def test_each_epoch_visits_every_example_once(batch_size):
    """Batches may straddle epochs: of these sizes, only 1 and 23 divide 23."""
    steps = -(-3 * SIZE // batch_size)
    stream = train_indices(SIZE, Order(batch_size, 0), range(steps))
    epochs = stream[: 3 * SIZE].reshape(3, SIZE)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(SIZE), (3, 1)))
    assert all((epochs[i] != epochs[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))
    assert (epochs[0] != np.arange(SIZE)).any()


def test_batch_larger_than_an_epoch_spans_several():
    stream = train_indices(3, Order(9, 0), range(1, 2))
    np.testing.assert_array_equal(np.sort(stream.reshape(3, 3)), np.tile(np.arange(3), (3, 1)))


def test_order_does_not_depend_on_the_batch_size():
    one, other = ([i for batch in labels(batch_size=b, steps=range(n)) for i in batch]
                  for b, n in ((4, 15), (6, 10)))  # fmt: skip
    assert one == other and len(one) == 60


@pytest.mark.parametrize('count', [2, 4])
def test_order_does_not_depend_on_the_number_of_processes(count):
    parts = [labels(part=Slice(index, count)) for index in range(count)]
    assert all(len(batch) == 8 // count for part in parts for batch in part)
    assert [sum(shares, []) for shares in zip(*parts, strict=True)] == labels()


@pytest.mark.parametrize('step', [1, 3, 9, 10])
def test_resuming_at_a_step_gives_the_same_batches(step):
    assert labels(steps=range(step, 10)) == labels()[step:]


def test_threads_and_prefetch_do_not_change_the_order():
    assert labels(threads=1, ahead=1) == labels(threads=4, ahead=8) == labels()


def test_seeds_differ_and_repeat():
    assert labels(seed=0) == labels(seed=0)
    assert labels(seed=0) != labels(seed=1)
    # Seed and epoch are not added: seed 1 does not start with the second epoch of seed 0.
    second = train_indices(SIZE, Order(SIZE, 0), range(1, 2))
    assert (train_indices(SIZE, Order(SIZE, 1), range(1)) != second).any()


def test_the_order_is_that_of_earlier_versions():
    """A run that resumes after an upgrade gets the same batches as before."""
    first, second = (Order(5, seed=1, version=version) for version in (1, 2))
    assert train_indices(7, first, range(2, 3)).tolist() == [0, 3, 2, 5, 0]
    assert train_indices(7, second, range(2, 3)).tolist() == [5, 6, 3, 4, 4]
    for version in (1, 2):
        assert example_numbers(Order(3, 1, version=version), range(2, 3)).tolist() == [
            13744443775079107998, 4542806826184744765, 7531101419052079111,
        ]  # fmt: skip


@pytest.mark.parametrize('version', [1, 2])
def test_steps_read_together_have_the_examples_and_numbers_of_single_ones(version):
    order = Order(8, 3, Slice(1, 2), version)
    for read_at_once in (lambda steps: train_indices(SIZE, order, steps),
                         lambda steps: example_numbers(order, steps)):  # fmt: skip
        singles = [read_at_once(range(step, step + 1)) for step in range(5, 12)]
        np.testing.assert_array_equal(read_at_once(range(5, 12)), np.concatenate(singles))


def test_the_order_of_much_data_takes_no_memory():
    """2**40 examples, whose permutation has 8 TiB."""
    tracemalloc.start()
    indices = train_indices(2**40, Order(64, 0), range(10**8, 10**8 + 2))
    assert len(set(indices.tolist())) == 128 and indices.max() > 2**38
    assert tracemalloc.get_traced_memory()[1] < 2**28
    tracemalloc.stop()


def test_random_numbers_depend_on_the_position_in_the_stream():
    """Batch size, processes, threads and the step of a resumed run do not affect them."""
    stream = sum(numbers(steps=range(15)), [])
    assert len(set(stream)) == 120 > SIZE and max(stream) > 2**63
    assert sum(numbers(batch_size=5, steps=range(24)), []) == stream
    assert sum(numbers(batch_size=5, steps=range(7, 24), threads=1, ahead=1), []) == stream[35:]
    parts = [numbers(part=Slice(index, 4)) for index in range(4)]
    assert sum([sum(shares, []) for shares in zip(*parts, strict=True)], []) == stream[:80]
    assert not set(sum(numbers(seed=1), [])) & set(stream)


def test_numbers_do_not_change_the_examples_and_evaluation_has_none():
    source = replace(SOURCE, fetch=numbered)
    assert [batch['label'].tolist() for batch in read(source)] == labels()
    several = next(train_batches(source, [0, 3], Order(4, 0)))
    assert several['number'].tolist() == numbers(batch_size=4, steps=range(3))
    assert 'number' not in next(eval_batches(source, 4, WHOLE))
    assert 'number' not in next(train_batches(replace(source, random=False), [0, 1], Order(4, 0)))


def test_workers_make_the_same_batches_of_a_data_set_on_disk():
    """The number of batches is odd, so that one worker finishes before the other."""
    changes = {'name': 'digits', 'image_size': (6, 7), 'random_crop': (0.3, 1.0)}
    cfg = Config(base().to_dict()).replace(**{f'data__{k}': v for k, v in changes.items()})
    source = open_source(resolve(cfg, None).data, 'train', 'config.data.train')
    one = read(source, steps=range(2, 7))
    batches = train_batches(source, range(2, 8), ORDER, Reading(2, 4, workers=2))
    done = threading.Event()

    def signal_workers():  # as a scheduler does that stops a whole job, but repeatedly
        late = time.monotonic() + LIMIT
        while not done.wait(0.03):
            # Workers that hang are killed, which makes the test fail.
            sent = signal.SIGTERM if time.monotonic() < late else signal.SIGKILL
            for worker in multiprocessing.active_children():
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(worker.pid, sent)

    sender = threading.Thread(target=signal_workers)
    sender.start()
    try:
        two = list(batches)
    finally:
        done.set()
        sender.join()
    batches.close()
    assert len(one) == len(two) == 5
    for batch, other in zip(one, two, strict=True):
        assert set(batch) == set(other) == {'image', 'label'}
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])
    assert not multiprocessing.active_children()  # closed


def broken(indices: np.ndarray, numbers: np.ndarray) -> dict[str, np.ndarray]:
    raise UserError(f'example {indices[0]} is broken')


def test_an_error_in_a_worker_is_raised_in_the_parent():
    first = train_indices(SIZE, ORDER, range(1))[0]
    batches = train_batches(replace(SOURCE, fetch=broken), range(9), ORDER, Reading(workers=1))
    with pytest.raises(UserError, match=f'example {first} is broken'):
        next(batches)
    batches.close()
    assert not multiprocessing.active_children()


KILLED = """
import multiprocessing, os
from tests.data.test_pipeline import ORDER, SOURCE, Reading, train_batches
if __name__ == '__main__':
    batches = train_batches(SOURCE, range(99), ORDER, Reading(workers=1))
    next(batches)
    print(len(multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), 9)
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    """Otherwise `run` times out, because workers keep the output pipes open."""
    (tmp_path / 'killed.py').write_text(KILLED)
    command = [sys.executable, str(tmp_path / 'killed.py')]
    environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stdout) == (-9, '1\n')


def test_batches_are_uint8_images_and_int32_labels():
    batch = next(train_batches(SOURCE, range(2), ORDER))
    assert (batch['image'].shape, batch['image'].dtype) == ((8, 2, 2, 1), np.uint8)
    assert (batch['label'].shape, batch['label'].dtype) == ((8,), np.int32)
    np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], batch['label'])


@pytest.mark.parametrize('batch_size', [1, 8, 23, 40])
def test_evaluation_counts_each_example_once_in_order(batch_size):
    batches = [batch['label'] for batch in eval_batches(SOURCE, batch_size, WHOLE)]
    assert len(batches) == -(-SIZE // batch_size)
    assert {len(batch) for batch in batches} == {batch_size}
    stream = np.concatenate(batches)
    np.testing.assert_array_equal(stream[:SIZE], np.arange(SIZE))
    assert (stream[SIZE:] == SIZE - 1).all()  # padding, which evaluation drops


@pytest.mark.parametrize('count', [2, 4])
def test_evaluation_is_shared_among_processes(count):
    shares = [eval_batches(SOURCE, 8, Slice(index, count)) for index in range(count)]
    joined = [np.concatenate([b['label'] for b in batch]) for batch in zip(*shares, strict=True)]
    whole = [batch['label'] for batch in eval_batches(SOURCE, 8, WHOLE)]
    np.testing.assert_array_equal(joined, whole)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('batch_size', 0, 1), 'config.batch_size=0 must be at least 1'),
        (('batch_size', -8, 1), 'config.batch_size=-8 must be at least 1'),
        (('batch_size', 30, 8), 'config.batch_size=30 is not divisible by the 8 devices; 24 would'),
        (('batch_size', 3, 8), 'config.batch_size=3 is not divisible by the 8 devices; 8 would be'),
        (('batch_size', 24, 8, 23), 'larger than the training data (23 examples); set it to 16'),
        (('eval_batch_size', 3, 2), 'config.eval_batch_size=3 is not divisible'),
    ],
)
def test_invalid_batch_sizes_are_refused(arguments, words):
    with pytest.raises(UserError) as caught:
        check_batch_size(*arguments)
    assert words in str(caught.value)


def test_the_suggested_batch_size_is_accepted():
    with pytest.raises(UserError) as caught:
        check_batch_size('batch_size', 24, 8, 23)
    check_batch_size('batch_size', int(str(caught.value).split('set it to ')[1].split()[0]), 8, 23)


@pytest.mark.parametrize('arguments', [(8, 8), (24, 8), (23, 1, 23), (8, 8, 23), (40, 8)])
def test_valid_batch_sizes_are_accepted(arguments):
    assert check_batch_size('batch_size', *arguments) is None
