"""jaxtrain beside PyTorch and Keras on three classic programs: speed and memory, on CPU.

    python -m tests.benchmarks
    python -m tests.benchmarks --programs=mnist_mlp --rounds=7 --output=benchmarks.json
    python -m tests.benchmarks --peers-python=OTHER/bin/python

The peers require torch and keras (`pip install -e '.[peers]'`), best in a separate environment,
because some libraries import torch if it is installed. Every contestant is a separate process on
the same cores and data; the contestants take turns, round by round. Each warms up, compilation
included, for as many steps as are then timed. Memory is the peak of a process from its start to its
end. Nothing else should run meanwhile: beside other work PyTorch was once slower by a factor of
fifty, far more than the others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.table import OURS, table

ROOT = Path(__file__).parents[2]

# Program -> timed steps, which take about ten seconds on two cores, or half a minute for the last.
STEPS = {'mnist_mlp': 5000, 'cifar10_cnn': 400, 'vgg16_head': 10}

# Program -> contestant -> (its module, arguments after the program, the folder and the steps).
_ALL = {
    OURS: ('ours',),
    'PyTorch, DataLoader': ('peers_torch', 'loader'),
    'PyTorch, from memory': ('peers_torch', 'memory'),
    'Keras on JAX': ('peers_keras',),
}
CONTESTANTS = {
    'mnist_mlp': _ALL,
    'cifar10_cnn': _ALL,
    'vgg16_head': {name: _ALL[name] for name in _ALL if name != 'PyTorch, from memory'},
}


def main() -> None:
    args = _arguments()
    # Unlike with taskset, all processes that are started here inherit this.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    results = {'threads': len(os.sched_getaffinity(0)), 'rounds': args.rounds, 'programs': {}}
    for program in args.programs:
        steps = args.steps or STEPS[program]
        rounds = measure(program, steps, args)
        speed, memory = _column(rounds, 'steps_per_s'), _column(rounds, 'peak_mib')
        results['programs'][program] = {'steps': steps, 'rounds': rounds}
        print(
            f'\n{program}: {steps} timed steps, {args.rounds} rounds, '
            f'{results["threads"]} threads; median [least, greatest]\n\n{table(speed, memory)}\n',
            flush=True,
        )
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1) + '\n')


def measure(program: str, steps: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs the rounds. Returns a dict for each round: contestant -> its report."""
    with tempfile.TemporaryDirectory() as folder:
        file = f'{folder}/train.npz'
        _python(sys.executable, 'tests.benchmarks.data', program, file)
        rounds = []
        for number in range(args.rounds):
            rounds.append({})
            for name, (module, *words) in CONTESTANTS[program].items():
                python = sys.executable if name == OURS else args.peers_python
                command = (f'tests.benchmarks.{module}', program, folder, str(steps), *words)
                report = json.loads(_python(python, *command).splitlines()[-1])
                rounds[-1][name] = report
                print(
                    f'{program} {number + 1}/{args.rounds} {name}: {report["steps_per_s"]:.2f} '
                    f'steps/s, {report["peak_mib"]:.0f} MiB',
                    file=sys.stderr, flush=True,
                )  # fmt: skip
        return rounds


def _python(python: str, module: str, *words: str) -> str:
    """The stdout of a module. Exits if the module fails."""
    threads = str(len(os.sched_getaffinity(0)))
    done = subprocess.run(
        [python, '-m', module, *words],
        cwd=ROOT,
        env={
            **os.environ,
            'JAX_PLATFORMS': 'cpu',
            'KERAS_BACKEND': 'jax',
            'OMP_NUM_THREADS': threads,
            'MKL_NUM_THREADS': threads,
        },
        text=True,
        capture_output=True,
    )
    if done.returncode:
        sys.exit(f'{module} {" ".join(words)} failed:\n{done.stdout}{done.stderr}')
    return done.stdout


def _column(rounds: list[dict[str, Any]], name: str) -> dict[str, list[float]]:
    return {who: [reports[who][name] for reports in rounds] for who in rounds[0]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m tests.benchmarks',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--programs', nargs='+', choices=STEPS, default=list(STEPS))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=0, help='timed steps, instead of the default')
    parser.add_argument(
        '--threads', type=int, default=None, help='number of cores to use; default all'
    )
    parser.add_argument(
        '--peers-python', default=sys.executable, help='python that has torch and keras'
    )
    parser.add_argument('--output', default='', help='JSON file for every single measurement')
    return parser.parse_args()


if __name__ == '__main__':
    main()
