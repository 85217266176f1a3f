"""Weights files for tests: random arrays under the names of another framework."""

import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxtrain.params.partition import by_path
from jaxtrain.weights.matching import target_model
from jaxtrain.weights.origins.names import their_shape
from tests.support.inputs import match_of


def arrays(module, model: str, outputs: int, inputs: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return the float32 arrays of a file of a model, each generated from its key."""
    fields = dict(module.MODELS[model])
    rows = module.rows(fields, outputs)
    leaves = by_path(*target_model(match_of(fields, outputs, inputs, rows))[1])
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    return {row.theirs: made(row.theirs, their_shape(row, shapes)) for row in rows}


def made(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 numbers around 0 that keep activations in range; positive for variances."""
    normal = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith('running_var'):
        return np.exp(normal).astype('f4')
    return (normal / np.sqrt(max(np.prod(shape[1:]), 1))).astype('f4')


def write(path: Path, weights: dict[str, np.ndarray]) -> Path:
    save_file(weights, path)
    return path
