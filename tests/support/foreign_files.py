"""Weights files for tests: random arrays under the names of another framework, whole or spoiled."""

import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxtrain.params.partition import by_path
from jaxtrain.weights.origins.names import their_shape
from jaxtrain.weights.stored import target_model
from tests.support.inputs import match_of


def arrays(module, model: str, outputs: int, inputs: tuple[int, ...]) -> dict[str, np.ndarray]:
    """What a file of that model holds, float32, each array made from its key."""
    fields = dict(module.MODELS[model])
    rows = module.rows(fields, outputs)
    leaves = by_path(*target_model(match_of(fields, outputs, inputs, rows))[1])
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    return {row.theirs: made(row.theirs, their_shape(row, shapes)) for row in rows}


def made(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 numbers around 0 that keep activations in range, around 1 for variances."""
    normal = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith('running_var'):
        return np.exp(normal).astype('f4')
    return (normal / np.sqrt(max(np.prod(shape[1:]), 1))).astype('f4')


def write(path: Path, found: dict[str, np.ndarray]) -> Path:
    save_file(found, path)
    return path
