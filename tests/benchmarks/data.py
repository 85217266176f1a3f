"""Synthetic images of the right shapes for all contestants: one npz file per program.

    python -m tests.benchmarks.data PROGRAM FILE

This requires only NumPy. It runs in a separate process, because the memory of the process that
starts the contestants would count as theirs.
"""

import sys

import numpy as np

# Program -> (image shape, number of classes, number of images).
SHAPES = {
    'mnist_mlp': ((28, 28, 1), 10, 60_000),
    'cifar10_cnn': ((32, 32, 3), 10, 50_000),
    'vgg16_head': ((150, 150, 3), 2, 400),
}


def write(program: str, file: str) -> None:
    """Writes `image`, uint8 [n, height, width, channels], and `label`, int32 [n]."""
    shape, classes, count = SHAPES[program]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    np.savez(file, image=images, label=rng.integers(0, classes, count, np.int32))


def read(file: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a file."""
    with np.load(file) as arrays:
        return arrays['image'], arrays['label']


if __name__ == '__main__':
    write(*sys.argv[1:])
