"""Two real processes that are killed in any phase and restarted have the same result, bit for bit.

    JAXTRAIN_KILL_RUNS=40 pytest tests/runs/test_kill_anywhere.py -m slow -s

tries 40 runs, and prints in which phases they were killed.
"""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from jaxtrain import storage
from jaxtrain.runs.metrics_log import read_metrics
from tests.conftest import TINY, start
from tests.pod.test_meet import free_port
from tests.runs.test_resume import assert_same
from tests.support.forked import Process

STEPS, EVAL_EVERY = 60, 20
CONFIG = (
    f'--config={TINY}:full',
    f'--config.steps={STEPS}',
    f'--config.eval_every={EVAL_EVERY}',
    '--config.eval_batch_size=2',  # so that it takes long enough to be killed
    '--config.save_every=7',  # not a divisor of log_every, so that checkpoints interrupt windows
    '--config.log_every=5',
    '--config.keep=2',
    '--config.ema=0.9',
    '--config.model.dropout=0.2',
    "--config.data.augment=(('shift', 1),)",
)
PHASES = ('start', 'restore', 'compile', 'step', 'save', 'eval', 'end')
RUNS = int(os.environ.get('JAXTRAIN_KILL_RUNS', '4'))
# The number of kills of a run before it may finish.
KILLS = 2


def launch(workdir: Path, processes: int) -> list[Process]:
    """Starts processes that have two devices together, so that sums are taken in the same order."""
    words = ['train', *CONFIG, f'--workdir={workdir}', '--start_timeout=60']
    if processes == 1:
        return [start(*words, devices=2)]
    words += [f'--coordinator=127.0.0.1:{free_port()}', '--processes=2']
    return [start(*words, f'--process={number}') for number in range(2)]


def finish(processes: list[Process]) -> list[int]:
    """The exit codes of the processes, which end within a minute of the first that ends."""
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    codes = [process.returncode for process in processes]
    # Preempted, killed by the signal sent here, or finished in spite of it.
    assert set(codes) <= {0, 42, -signal.SIGKILL, -signal.SIGTERM}, '\n'.join(outputs)
    return codes


def phase_of(workdir: Path, starts: int) -> str:
    """The phase that the newest start is in, by what it has written so far."""
    events = storage.read_lines(workdir / 'events.jsonl')
    newest = [event for event in events if event['start'] == starts]
    if not newest:
        return 'start'
    if newest[-1]['step'] == STEPS:
        return 'end'
    phases = [event['phase'] for event in newest if event['event'] == 'begin']
    if newest[-1]['event'] == 'begin':
        return phases[-1]
    if any((workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp*')):
        return 'save'  # in the background, while steps continue
    return 'step' if 'compile' in phases else 'start'


def kill_in(phase: str, workdir: Path, processes: list, starts: int, rng: random.Random) -> str:
    """Sends a random signal once the run is in a phase; returns what was hit, or '' if it ended."""
    while phase_of(workdir, starts) != phase:
        if any(process.poll() is not None for process in processes):
            return ''
        time.sleep(0.001)
    time.sleep(rng.random() * {'start': 2.0, 'compile': 1.5, 'restore': 0.3}.get(phase, 0.03))
    hit = phase_of(workdir, starts)
    targets = rng.choice([processes, processes[:1], processes[-1:]])
    number = rng.choice([signal.SIGKILL, signal.SIGTERM])
    for process in targets:
        process.send_signal(number)
    who = 'both' if len(targets) == 2 else f'process {processes.index(targets[0])}'
    return f'{hit}: {number.name} to {who}'


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """The same run on two processes, never interrupted."""
    workdir = tmp_path_factory.mktemp('straight') / 'run'
    assert finish(launch(workdir, 2)) == [0, 0]
    assert len(read_metrics(workdir)) == STEPS // 5 + STEPS // EVAL_EVERY + 1
    return workdir


@pytest.mark.slow
def test_killed_anywhere(straight, tmp_path):
    hits: Counter = Counter()
    for number in range(RUNS):
        rng, workdir = random.Random(number), tmp_path / f'run_{number}'
        counts, kills = set(), 0
        while not (workdir / 'result.json').exists():
            events = storage.read_lines(workdir / 'events.jsonl')
            starts = 1 + max((event['start'] for event in events), default=-1)
            count = rng.choice([2, 2, 1])
            processes = launch(workdir, count)
            counts.add(count)
            if kills < KILLS:
                # Each phase is the first to be hit in some run.
                phase = PHASES[(number + kills * 3) % len(PHASES)]
                hit = kill_in(phase, workdir, processes, starts, rng)
                hits[hit or f'{phase}: over before'] += 1
                kills += 1
            finish(processes)
        assert_same(workdir, straight)
        print(f'run {number}: {kills} kills, processes {sorted(counts)}, the same', flush=True)
    print(*(f'{count:3} {hit}' for hit, count in sorted(hits.items())), sep='\n')
    assert sum(count for hit, count in hits.items() if 'over before' not in hit) >= RUNS
