"""Makes golden/runs.tar.xz: runs of an earlier revision, and their results.

    python tests/golden/make_runs.py tests/golden/runs.tar.xz

This was run once, at 515b85b with jax 0.10.2 (recorded in each config.json). Do not run it with a
later revision: the purpose of these runs is that they are old. `full` and `linear` are finished;
`scratch` and `text` were stopped in the middle, as by SIGTERM. expected.json holds the val and test
metrics with which that revision finished them. All paths are relative to the folder of the runs.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from jaxtrain.cli import main
from jaxtrain.pod.stop import StopRequest

TINY = str(Path(__file__).parents[1] / 'configs' / 'tiny.py')
SENTENCES = ('the cat sleeps', 'a dog barks loudly', 'cats purr', 'the dogs sleep', 'a cat barks')
RUNS = {
    'full': ('tiny:full', '--config.steps=30'),
    'linear': ('tiny:linear', '--config.init_from=full', '--config.frozen_norm=adapt'),
    'scratch': (
        'tiny:scratch', '--config.steps=40', '--config.ema=0.9',
        "--config.data.augment=(('shift',1),)",
    ),
    'text': (
        'text', '--config.steps=40', '--config.accumulate=2', '--config.model.dropout=0.1',
    ),
}  # fmt: skip
STOPPED = ('scratch', 'text')
TEXT = """
from jaxtrain.config import base


def get_config():
    c = base()
    c.task.name = 'lm'
    c.best_metric = 'loss'
    c.data.source = 'corpus'
    c.data.path = 'corpus'
    c.data.tokenizer = 'bytes'
    c.data.length = 16
    c.data.train, c.data.val, c.data.test = 'learn', 'choose', 'held_out'
    c.data.shares = (('learn', 0.6), ('choose', 0.2), ('held_out', 0.2))
    c.model.name = 'gpt'
    c.model.width, c.model.depth, c.model.heads, c.model.context = 8, 1, 2, 16
    c.batch_size = 8
    c.log_every = 5
    c.eval_every = 10
    return c
"""


def write_corpus(folder: Path) -> None:
    folder.mkdir()
    for number in range(20):
        text = '. '.join(SENTENCES[number % k] for k in range(1, 6)) + f'. {number} cats.\n'
        (folder / f'{number:02}.txt').write_text(text * 4)


def run(name: str, asked=None) -> int:
    config, *overrides = RUNS[name]
    config = 'text.py' if config == 'text' else config.replace('tiny', TINY)
    before, StopRequest.asked = StopRequest.asked, asked or StopRequest.asked
    try:
        return main(['train', f'--config={config}', *overrides, f'--workdir={name}'])
    finally:
        StopRequest.asked = before


def after(count: int):
    """A `StopRequest.asked` that asks for a stop after `count` calls."""
    times = iter(range(10_000))
    return lambda self: next(times) >= count


def evaluations(workdir: Path) -> list[dict]:
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [line for line in lines if line['split'] != 'train']


if __name__ == '__main__':
    output, folder = Path(sys.argv[1]).resolve(), Path(tempfile.mkdtemp())
    os.chdir(folder)
    Path('text.py').write_text(TEXT)
    write_corpus(Path('corpus'))
    expected = {}
    for name in RUNS:
        assert run(name, after(22) if name in STOPPED else None) == (42 if name in STOPPED else 0)
        if name in STOPPED:
            shutil.copytree(name, f'{name}-stopped')
            assert run(name) == 0
        expected[name] = evaluations(Path(name))
        if name in STOPPED:
            shutil.rmtree(name)
            Path(f'{name}-stopped').rename(name)
        shutil.rmtree(Path(name) / 'tensorboard')  # as large as all the rest
        (Path(name) / 'curves.png').unlink(missing_ok=True)
    Path('expected.json').write_text(json.dumps(expected, indent=1))
    shutil.make_archive(str(output).removesuffix('.tar.xz'), 'xztar', folder)
