"""Synthetic images of the right shapes, one npz file a program, for all contestants alike.

    python -m tests.benchmarks.data PROGRAM FILE

Needs numpy alone. It is a process of its own, because the memory of the process that starts the
contestants would count as theirs.
"""

import sys

import numpy as np

# Program -> image shape, classes, how many images.
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
