"""Restores half a gigabyte of pretrained weights: peak memory, and time relative to bare reading.

    python -m tests.benchmarks.restore
    python -m tests.benchmarks.restore --formats safetensors --rounds 9

Each format is measured in a separate process. The files in safetensors, PyTorch's format and npz
hold GPT-2 with 124 million parameters; Keras's HDF5 file holds VGG16 with its top. Memory is the
peak above the memory after JAX has started, per byte of the file. Times are paired by round, with
the file in the page cache: `plan` opens the file and makes the restore plan, `read` reads the
arrays onto the device, and both are divided by the time in which NumPy reads the bytes of the file
into memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORMATS = {
    'safetensors': ('weights.safetensors', 'huggingface', 'gpt2'),
    'pth': ('weights.pth', 'huggingface', 'gpt2'),
    'npz': ('weights.npz', 'huggingface', 'gpt2'),
    'h5': ('weights.h5', 'keras', 'vgg16'),
}


def make(kind: str, folder: str) -> None:
    """Writes a format's file."""
    import numpy as np

    from jaxtrain.weights.origins import huggingface_text
    from tests.support import foreign_files, keras_files, pth_files

    path = Path(folder) / FORMATS[kind][0]
    if kind == 'h5':
        keras_files.write(path, 'keras1', units=keras_files.FULL_TOP)
        return
    weights = foreign_files.arrays(huggingface_text, 'gpt2', 50257, (1024,))
    if kind == 'safetensors':
        foreign_files.write(path, weights)
    elif kind == 'pth':
        pth_files.write_zip(path, {key: pth_files.tensor(a) for key, a in weights.items()})
    else:
        np.savez(path, **weights)


def restored(kind: str, folder: str) -> tuple[float, float]:
    """Restores a format's file as a job does. Returns the seconds of planning and of reading."""
    import jax

    from jaxtrain.parallel.mesh import make_mesh, on_mesh
    from jaxtrain.weights import matching, restore, stored

    name, origin, model = FORMATS[kind]
    start = time.perf_counter()
    weights, match, _ = stored.open_foreign(Path(folder) / name, stored.Foreign(origin, model))
    target = on_mesh(matching.target_model(match)[1], make_mesh())
    plan = restore.make_plan(weights, target, (('.*', 'load'),))
    planned = time.perf_counter()
    jax.block_until_ready(restore.read(plan, target))
    return planned - start, time.perf_counter() - planned


def memory(kind: str, folder: str) -> float:
    """Peak host memory of restoring a format's file, per byte of it; in a fresh process."""
    import jax

    from jaxtrain.weights import restore, stored  # noqa: F401

    jax.numpy.zeros(1).block_until_ready()
    before = _status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    restored(kind, folder)
    return (_status('VmHWM') - before) / (Path(folder) / FORMATS[kind][0]).stat().st_size


def measure(kind: str, folder: str, rounds: int) -> dict:
    """The ratio of memory, and the ratios of time by round."""
    import numpy as np

    ratios = {'memory': memory(kind, folder), 'plan': [], 'read': [], 'bare': []}
    for _ in range(rounds):
        start = time.perf_counter()
        np.fromfile(Path(folder) / FORMATS[kind][0], np.uint8)
        bare = time.perf_counter() - start
        for name, seconds in zip(('plan', 'read'), restored(kind, folder), strict=True):
            ratios[name].append(seconds / bare)
        ratios['bare'].append(bare)
    return ratios


def in_fresh_process(*words: str) -> str:
    """The last line that this module prints for these arguments. RuntimeError if it fails."""
    done = subprocess.run(
        [sys.executable, '-m', 'tests.benchmarks.restore', *words],
        cwd=ROOT,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
        text=True,
        capture_output=True,
    )
    if done.returncode:
        raise RuntimeError(f'{" ".join(words)} failed:\n{done.stdout}{done.stderr}')
    return done.stdout.splitlines()[-1] if done.stdout else ''


def main() -> None:
    from tests.benchmarks.table import spread

    parser = argparse.ArgumentParser(
        prog='python -m tests.benchmarks.restore',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--formats', nargs='+', choices=FORMATS, default=list(FORMATS))
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args()
    print(
        '| format | peak memory / file | plan / bare | read / bare | bare, s |\n'
        '|---|---|---|---|---|'
    )
    for kind in args.formats:
        with tempfile.TemporaryDirectory() as folder:
            in_fresh_process('make', kind, folder)
            measured = json.loads(in_fresh_process('measure', kind, folder, str(args.rounds)))
        cells = [f'{measured["memory"]:.2f}']
        for name in ('plan', 'read', 'bare'):
            s = spread(measured[name])
            cells.append(f'{s.median:.2f} [{s.least:.2f}, {s.greatest:.2f}]')
        print(f'| {kind} | {" | ".join(cells)} |', flush=True)


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    text = Path('/proc/self/status').read_text()
    return int(text.split(f'{field}:')[1].split()[0]) * 1024


if __name__ == '__main__':
    if sys.argv[1:2] == ['make']:
        make(*sys.argv[2:])
    elif sys.argv[1:2] == ['memory']:
        print(memory(*sys.argv[2:]))
    elif sys.argv[1:2] == ['measure']:
        print(json.dumps(measure(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        main()
