"""jaxtrain on a program: the real command, with the config file of this repository.

    python -m tests.benchmarks.ours PROGRAM FOLDER STEPS

The result is `steps_per_s` in the run's metrics.jsonl. A run has two windows of STEPS steps: the
first warms up, and the second counts. It includes the data pipeline, the check of every loss, and
the log, as for a user, but not the checkpoint at the end.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.contestant import report

CONFIGS = Path(__file__).parents[2] / 'configs'

# Program -> (config, overrides for data without splits and for random initial parameters). The step
# stays the same.
COMMANDS = {
    'mnist_mlp': ('scratch/mnist_mlp.py', []),
    'cifar10_cnn': ('full/cifar10_cnn.py', []),
    'vgg16_head': (
        'finetune/vgg16_folder.py',
        ['init_from=', "restore.rules=(('.*', 'load'),)", 'data.image_size=()'],
    ),
}


def overrides(program: str, folder: str, steps: int) -> list[str]:
    """The command-line arguments after the config file."""
    words = [
        'data.source=npz', f'data.path={folder}', 'data.name=', 'data.train=train', 'data.val=',
        'data.test=', f'steps={2 * steps}', 'epochs=0', 'every=steps', f'log_every={steps}',
        'eval_every=0', 'save_every=0', *COMMANDS[program][1],
    ]  # fmt: skip
    return [f'--config.{word}' for word in words]


def main(program: str, folder: str, steps: str) -> None:
    with tempfile.TemporaryDirectory() as workdir:
        # An empty cache: compilation takes memory, which must count in every round.
        os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{workdir}/xla'
        from jaxtrain.cli import main as jaxtrain

        config = CONFIGS / COMMANDS[program][0]
        words = ['train', f'--config={config}', f'--workdir={workdir}/run']
        code = jaxtrain([*words, *overrides(program, folder, int(steps))])
        if code:
            sys.exit(code)
        lines = map(json.loads, (Path(workdir) / 'run' / 'metrics.jsonl').open())
        speeds = {line['step']: line['steps_per_s'] for line in lines if line['split'] == 'train'}
    report(speeds[2 * int(steps)], 'jax', 'flax')


if __name__ == '__main__':
    main(*sys.argv[1:])
