"""Large models on an accelerator: jaxtrain's train step beside PyTorch's, speed and MFU.

    python -m tests.benchmarks.foundation --peers-python=OTHER/bin/python
    python -m tests.benchmarks.foundation --programs gpt2 --batch-size=32 --vocabulary=50304
    python -m tests.benchmarks.foundation --tiny

ViT-B/16 and ResNet-50 are compared with timm's models with torch.compile and channels-last, and
GPT-2 of 124 million parameters with a model with torch.compile and flash attention. The benchmark
requires a GPU, jax with its plugin for the GPU, and in the other environment torch and timm (`pip
install -e '.[foundation]'`). jax and torch may require different versions of NVIDIA's libraries, so
two environments are better. `--tiny` makes everything small enough for a CPU: this shows that the
benchmark runs, and its numbers mean nothing else.

The timed steps are whole train steps. They begin with uint8 images or tokens, which are already on
the device and the same for both contestants, and include flipping, normalising, the forward and
backward pass in bfloat16 with float32 parameters, clipping, and the optimizer's update. The loop
around the step, decoding, and copying to the device are excluded for both. After warm-up steps,
which include compilation, the time is measured from one wait for the device to the next.

Every contestant is a separate process; the contestants take turns, round by round. If one runs out
of memory, the rounds start again for all with half the batch. MFU is the model's operations divided
by the chip's peak in bfloat16 (chips.py, or --peak-tflops). The operations are the matrix products
and convolutions in jaxtrain's step, and the same number is used for all. For causal attention the
whole square counts, as in PaLM (arXiv:2204.02311, appendix B). Multiplications with padding in
convolutions do not count, which for ResNet-50 are 3.5% of the number that is usually published.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.table import OURS, Rounds, cell, ratios, spread

ROOT = Path(__file__).parents[2]
BATCHES = 2  # batches on the device, which are used in turn

Report = dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """The work of a contestant, which gets it as JSON.

    Attributes:
      program: 'vit_b16', 'resnet50' or 'gpt2'; the other fields give its size, full or tiny.
      batch_size, steps, warmup: examples per step, timed steps, and steps before these.
      size: side of the images in pixels, or tokens of an example.
      outputs: classes, or tokens of the vocabulary.
      width, depth, heads: sizes of the transformers; a ResNet has only a depth.
      patch: side of a patch in pixels.
      folder: the folder of the data.
      device: 'cuda' or 'cpu'.
      mode: mode of torch.compile; 'eager' does not compile.
    """

    program: str
    batch_size: int
    steps: int
    warmup: int
    size: int
    outputs: int
    width: int = 0
    depth: int = 0
    heads: int = 0
    patch: int = 0
    folder: str = ''
    device: str = 'cuda'
    mode: str = 'default'

    @property
    def unit(self) -> str:
        return 'tokens' if self.program == 'gpt2' else 'images'

    @property
    def per_example(self) -> int:
        """Units in an example."""
        return self.size if self.program == 'gpt2' else 1


SPECS = {
    spec.program: spec
    for spec in (
        Spec('vit_b16', 256, 50, 10, 224, 1000, width=768, depth=12, heads=12, patch=16),
        Spec('resnet50', 256, 100, 10, 224, 1000, depth=50),
        Spec('gpt2', 16, 100, 10, 1024, 50257, width=768, depth=12, heads=12),
    )
}
TINY = {
    spec.program: spec
    for spec in (
        Spec('vit_b16', 8, 20, 3, 32, 10, width=32, depth=2, heads=2, patch=8),
        Spec('resnet50', 8, 10, 3, 32, 10, depth=18),
        Spec('gpt2', 4, 20, 3, 32, 100, width=32, depth=2, heads=2),
    )
}


class OutOfMemory(Exception):
    """The batch did not fit for a contestant, whose name is the message."""


def main() -> None:
    args = _arguments()
    # Every contestant uses one device, even if the machine has several.
    os.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    results = {}
    for program in args.programs:
        with tempfile.TemporaryDirectory() as folder:
            spec = _spec(program, folder, args)
            results[program] = measure(spec, args.rounds, _asker(args, folder), _write)
        print('\n' + report(results[program], args.peak_tflops * 1e12) + '\n', flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1) + '\n')


def measure(
    spec: Spec,
    rounds: int,
    ask: Callable[[str, Spec], Report],
    write: Callable[[Spec], None],
) -> dict[str, Any]:
    """Runs the rounds, with half the batch whenever a contestant runs out of memory.

    Args:
      spec: the requested work.
      rounds: number of rounds.
      ask: (contestant, spec) -> its report; raises OutOfMemory.
      write: writes the data for a spec.

    Returns:
      `spec`, the work that was done; `halved`, the names of the contestants that ran out of memory;
      `flops` of an example; and `rounds`, a dict for each: contestant -> its report.
    """
    halved: list[str] = []
    while True:
        write(spec)
        try:
            flops = ask('flops', spec)['flops']
            done = [{name: ask(name, spec) for name in (OURS, _peer(spec))} for _ in range(rounds)]
        except OutOfMemory as error:
            if spec.batch_size == 1:
                sys.exit(f'{error} ran out of memory with a single example of {spec.program}')
            halved.append(str(error))
            spec = replace(spec, batch_size=spec.batch_size // 2)
            print(f'{error}: out of memory; all again with {spec.batch_size}', file=sys.stderr)
            continue
        _check_same(spec, done[0])
        return {'spec': asdict(spec), 'halved': halved, 'flops': flops, 'rounds': done}


def report(result: dict[str, Any], peak: float = 0.0) -> str:
    """A program's title and table, as Markdown.

    Args:
      result: the return value of `measure`.
      peak: the chip's peak in operations per second; 0 uses jaxtrain's value for the chip.
    """
    spec, rounds = Spec(**result['spec']), result['rounds']
    units = spec.batch_size * spec.per_example
    speed = {who: [reports[who]['steps_per_s'] * units for reports in rounds] for who in rounds[0]}
    first = rounds[0][OURS]
    versions = {name: v for one in rounds[0].values() for name, v in one['versions'].items()}
    halved = (
        f' (halved: out of memory in {", ".join(result["halved"])})' if result['halved'] else ''
    )
    return (
        f'{spec.program} on {first["device"]}: {first["params"]:,} parameters, batch '
        f'{spec.batch_size}{halved}, {spec.size} {"tokens" if spec.per_example > 1 else "pixels"}, '
        f'bfloat16; {result["flops"] / 1e9:,.4g} GFLOP an example and step; {spec.steps} timed '
        f'steps after {spec.warmup}, {len(rounds)} rounds; median [least, greatest]; '
        f'{", ".join(f"{name} {v}" for name, v in versions.items())}\n\n'
        + table(speed, spec.unit, result['flops'] / spec.per_example, peak or first['peak'])
    )


def table(speed: Rounds, unit: str, flops: float, peak: float) -> str:
    """Markdown: a row per contestant, ours first.

    Args:
      speed: units per second.
      unit: 'tokens' or 'images'.
      flops: operations of a train step per unit.
      peak: operations per second; 0 if it is not known, and MFU is left empty.
    """
    faster = ratios(speed)
    lines = [f'| | {unit}/s | MFU, % | ours / theirs |', '|---|---|---|---|']
    for name, values in speed.items():
        mfu = cell(spread([100 * v * flops / peak for v in values])) if peak else ''
        ratio = cell(faster[name]) if name in faster else ''
        lines.append(f'| {name} | {cell(spread(values))} | {mfu} | {ratio} |')
    return '\n'.join(lines)


def print_report(steps_per_s: float, loss: float, packages: tuple[str, ...], **more: Any) -> None:
    """Prints the report of a contestant. ValueError for a loss that is not finite."""
    if not math.isfinite(loss):
        raise ValueError(f'the loss is {loss}')
    versions = {name: version(name) for name in packages}
    print(json.dumps({'steps_per_s': steps_per_s, 'versions': versions, **more}), flush=True)


def print_out_of_memory() -> None:
    print(json.dumps({'out_of_memory': True}), flush=True)


def _peer(spec: Spec) -> str:
    library = 'PyTorch' if spec.program == 'gpt2' else 'timm'
    layout = '' if spec.program == 'gpt2' else ', channels-last'
    modes = {'eager': 'eager', 'default': 'torch.compile'}
    return f'{library}, {modes.get(spec.mode, f"torch.compile {spec.mode}")}{layout}'


def _check_same(spec: Spec, reports: dict[str, Report]) -> None:
    """Exits if the models of a round differ in size."""
    counts = {who: one['params'] for who, one in reports.items()}
    if len(set(counts.values())) > 1:
        sys.exit(f'{spec.program} is not the same model for all; parameters: {counts}')


def _write(spec: Spec) -> None:
    """Writes the data for BATCHES batches.

    For images this is `train.npz`; for text it is `train/words.txt`, whose words are the numbers in
    `tokens.npy`, and a tokenizer for them.
    """
    folder, rng = Path(spec.folder), np.random.default_rng(0)
    examples = BATCHES * spec.batch_size
    if spec.program != 'gpt2':
        images = rng.integers(0, 256, (examples, spec.size, spec.size, 3), np.uint8)
        labels = rng.integers(0, spec.outputs, examples, np.int32)
        names = np.array([f'class {i}' for i in range(spec.outputs)])
        np.savez(folder / 'train.npz', image=images, label=labels, classes=names)
        return
    tokens = rng.integers(0, spec.outputs, examples * spec.size + 1, np.int32)
    np.save(folder / 'tokens.npy', tokens)
    (folder / 'train').mkdir(exist_ok=True)
    (folder / 'train' / 'words.txt').write_text(' '.join(map(str, tokens.tolist())))
    words = {'type': 'WordLevel', 'vocab': {str(i): i for i in range(spec.outputs)}}
    tokenizer = {
        'version': '1.0', 'added_tokens': [], 'pre_tokenizer': {'type': 'WhitespaceSplit'},
        'model': {**words, 'unk_token': '0'},
    }  # fmt: skip
    (folder / 'tokenizer.json').write_text(json.dumps(tokenizer))


def _asker(args: argparse.Namespace, cache: str) -> Callable[[str, Spec], Report]:
    """The function that starts a contestant and reads its report."""

    def ask(name: str, spec: Spec) -> Report:
        python, module, *words = {
            'flops': (sys.executable, 'foundation_ours', 'flops'),
            OURS: (sys.executable, 'foundation_ours', 'time'),
        }.get(name, (args.peers_python, 'foundation_torch'))
        # Counting needs no device, and on a GPU fused attention would hide matrix products.
        platform = 'cpu' if name == 'flops' or spec.device == 'cpu' else 'cuda,cpu'
        command = [python, '-m', f'tests.benchmarks.{module}', json.dumps(asdict(spec)), *words]
        report = _report_of(command, {**_caches(cache), 'JAX_PLATFORMS': platform})
        if report.get('out_of_memory'):
            raise OutOfMemory(name)
        if name != 'flops':
            print(f'{spec.program} {name}: {report["steps_per_s"]:.2f} steps/s', file=sys.stderr)
        return report

    return ask


def _report_of(command: list[str], environment: dict[str, str]) -> Report:
    """The report in the last line of a process's stdout. Exits if the process fails."""
    environment = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f'{" ".join(command)} failed:\n{done.stdout}{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1])


def _caches(folder: str) -> dict[str, str]:
    """Compilation caches: compilation is not timed, so all rounds except the first may use them."""
    return {
        'JAX_COMPILATION_CACHE_DIR': f'{folder}/xla',
        'TORCHINDUCTOR_CACHE_DIR': f'{folder}/inductor',
    }


def _spec(program: str, folder: str, args: argparse.Namespace) -> Spec:
    spec = (TINY if args.tiny else SPECS)[program]
    vocabulary = args.vocabulary if program == 'gpt2' else 0
    return replace(
        spec,
        batch_size=args.batch_size or spec.batch_size,
        steps=args.steps or spec.steps,
        outputs=vocabulary or spec.outputs,
        folder=folder,
        device=args.device or ('cpu' if args.tiny else 'cuda'),
        mode='eager' if args.eager else args.compile_mode,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m tests.benchmarks.foundation',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--programs', nargs='+', choices=SPECS, default=list(SPECS))
    add('--rounds', type=int, default=3)
    add('--steps', type=int, default=0, help='timed steps, instead of the default')
    add('--batch-size', type=int, default=0, help='instead of 256 images, 16 texts of 1024 tokens')
    add('--vocabulary', type=int, default=0, help='vocabulary of GPT-2, instead of 50257')
    add('--peak-tflops', type=float, default=0.0, help="the chip's peak in bfloat16, dense")
    add('--tiny', action='store_true', help='small models, on the CPU unless --device is given')
    add('--device', choices=('cuda', 'cpu'), default='')
    add('--threads', type=int, default=None, help='number of cores to use; default all')
    add('--eager', action='store_true', help='PyTorch without torch.compile')
    add('--compile-mode', default='default', help='mode of torch.compile, such as max-autotune')
    add('--peers-python', default=sys.executable, help='python that has torch and timm')
    add('--output', default='', help='JSON file for every single measurement')
    return parser.parse_args()


if __name__ == '__main__':
    main()
