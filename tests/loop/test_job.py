"""What a job draws at random: never what the runs before it drew, and for all arms the same."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from jaxtrain.config.files import load
from jaxtrain.config.streams import Streams
from jaxtrain.data.pipeline import Order, train_batches
from jaxtrain.loop.job import Job, first_state, make_job
from jaxtrain.params.partition import flatten
from tests.conftest import TINY

SHORT = ('--config.steps=1', '--config.data.limit=0', '--config.eval_every=0')


def job_of(variant: str, *overrides: str, workdir: str | Path = '') -> Job:
    return make_job(load(f'{TINY}:{variant}', list(overrides)), workdir=workdir)


def began(job: Job) -> dict[str, np.ndarray]:
    """The random leaves that a run begins with; zeros and ones are not drawn."""
    leaves = flatten(first_state(job, job.streams.seed).params)
    loaded = set(job.start.plan.paths('load')) if job.start.plan else set()
    drawn = {path: np.asarray(leaf) for path, leaf in leaves.items() if path not in loaded}
    return {path: leaf for path, leaf in drawn.items() if len(np.unique(leaf)) > 1}


def order(job: Job) -> list[int]:
    batches = train_batches(job.train, [0, 1], Order(16, job.streams.seed))
    return next(batches)['image'].ravel().tolist()


@pytest.fixture(scope='module')
def lineage(pretrained, tmp_path_factory) -> list[tuple[str, list[str]]]:
    """Four generations with seed 0 and the same shapes: (variant, overrides) of each."""
    from jaxtrain.cli import main

    folder = tmp_path_factory.mktemp('lineage')
    runs = [('full', []), ('finetune', [f'--config.init_from={pretrained}'])]
    for number in (1, 2):
        variant, overrides = runs[number]
        workdir = f'--workdir={folder / str(number)}'
        assert main(['train', f'--config={TINY}:{variant}', *SHORT, *overrides, workdir]) == 0
        runs.append(('linear', [f'--config.init_from={folder / str(number)}']))
    return runs


def test_no_fresh_leaf_and_no_order_is_that_of_an_earlier_run(lineage):
    jobs = [job_of(variant, *SHORT, *overrides) for variant, overrides in lineage]
    leaves = [began(job)['head/logits/kernel'].tobytes() for job in jobs]
    assert len(set(leaves)) == 4 and len({job.streams.seed for job in jobs}) == 4
    assert len({tuple(order(job)) for job in jobs}) == 4
    assert jobs[3].streams.earlier == tuple(job.streams.seed for job in jobs[:3])


def test_the_arms_of_a_pair_begin_with_the_same_head_and_order(pretrained):
    start = f'--config.init_from={pretrained}'
    scratch = job_of('scratch')
    for variant in ('linear', 'finetune'):
        arm = job_of(variant, start)
        assert began(arm).keys() == {'head/logits/kernel'}
        for path, leaf in began(arm).items():
            np.testing.assert_array_equal(leaf, began(scratch)[path])
        assert order(arm) == order(scratch)
    assert order(job_of('scratch', '--config.seed=1')) != order(scratch)


@pytest.mark.parametrize(
    ('entries', 'streams'),
    [({}, Streams(0, (), 1)), ({'streams': 2, 'seeds': [7, 8, 9]}, Streams(9, (7, 8)))],
)
def test_a_run_that_recorded_its_streams_keeps_them(entries, streams, tmp_path):
    """Also if it was killed before its first checkpoint."""
    recorded = {'config': load(f'{TINY}:scratch', []).to_dict(), **entries}
    (tmp_path / 'config.json').write_text(json.dumps(recorded))
    assert job_of('scratch', workdir=tmp_path).streams == streams


@pytest.mark.slow
def test_untrained_heads_are_no_better_than_chance(tmp_path, jaxtrain):
    """Eight seeds on three checkpoints, two of which began with one of these seeds."""
    accuracies = np.zeros((3, 8))
    for number, seed in enumerate((0, 3, 100)):
        full = tmp_path / str(seed)
        words = [f'--config={TINY}:full', f'--config.seed={seed}', f'--workdir={full}']
        assert jaxtrain('train', *words).code == 0
        for other in range(8):
            words = [
                f'--config.init_from={full}',
                '--config.data.limit=0',
                f'--config.seed={other}',
            ]
            job = job_of('linear', *words)
            state = first_state(job, job.streams.seed)
            examples = job.train.fetch(np.arange(len(job.train)))
            rows = jax.jit(job.eval_step())(state, examples)
            accuracies[number, other] = np.mean(rows['accuracy'])
    assert stats.ttest_1samp(accuracies.ravel(), 0.1).pvalue > 0.01
    assert accuracies.max() < 0.3
