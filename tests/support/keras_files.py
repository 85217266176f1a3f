"""Keras's VGG files written without Keras: layouts from a golden manifest, weights from names."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from jaxtrain.models.vgg import CONVOLUTIONS, WIDTHS
from tests.golden.make_keras_vgg import weight

GOLDEN = Path(__file__).parents[1] / 'golden'
# 'tf-keras3' is the .weights.h5 of tf-keras: as Keras 3 writes it, but without layer names.
LAYOUTS = ('keras3', 'keras3-legacy', 'tf-keras', 'tf-keras3', 'keras1')
FULL_TOP = (4096, 4096, 1000)

cached_weight = functools.lru_cache(maxsize=128)(weight)


def shapes(depth: int, units: tuple[int, ...], features: int = 25088) -> dict[tuple, tuple]:
    """Return shapes by (layer, 'kernel' or 'bias'), for a top with these units and features."""
    result, channels = {}, 3
    for block, (count, width) in enumerate(zip(CONVOLUTIONS[depth], WIDTHS, strict=True), 1):
        for i in range(1, count + 1):
            result[f'block{block}_conv{i}', 'kernel'] = (3, 3, channels, width)
            result[f'block{block}_conv{i}', 'bias'] = (width,)
            channels = width
    for name, width in zip(('fc1', 'fc2', 'predictions'), units, strict=False):
        result[name, 'kernel'], result[name, 'bias'] = (features, width), (width,)
        features = width
    return result


def manifest(layout: str, depth: int, top: bool) -> dict:
    """Return [shape or None, attributes] by address."""
    stored = json.loads((GOLDEN / 'keras_vgg.json').read_text())
    kind = f'vgg{depth}/{"top" if top else "notop"}'
    if layout != 'keras1':
        return stored[f'{layout}/{kind}']
    # The files that Keras downloads: `fc1/fc1_W_1:0`, with layers listed as in tf-keras.
    result = {}
    for address, (shape, attributes) in stored[f'tf-keras/{kind}'].items():
        attributes = {key: value for key, value in attributes.items() if key.endswith('_names')}
        if 'weight_names' in attributes:
            names = [_keras1(name) for name in attributes['weight_names']]
            attributes = {'weight_names': names}
        parts = address.split('/')
        if shape is None and len(parts) == 1:
            result[address] = [None, attributes]
        elif shape is not None:
            result[f'{parts[0]}/{_keras1("/".join(parts[1:]))}'] = [shape, {}]
    return result


def write(
    path: Path,
    layout: str,
    depth: int = 16,
    units: tuple[int, ...] = (),
    features: int = 25088,
    dtype: str = 'f4',
    value: Callable[[str, str, tuple], np.ndarray] | None = cached_weight,
) -> Path:
    """Write a file in a layout.

    Args:
      path: the file to write.
      layout: one of LAYOUTS.
      depth, units, features: the model.
      dtype: dtype of the arrays.
      value: (layer, name, shape) -> array; None leaves the arrays unwritten, so that they read as
        zeros and occupy no space.
    """
    entries = manifest(layout, depth, bool(units))
    owners, wanted = _owners(layout, depth, bool(units)), shapes(depth, units, features)
    with h5py.File(path, 'w') as file:
        for address, (shape, attributes) in entries.items():
            if shape is None:
                item = file.require_group(address) if address else file
            else:
                owner = owners[address]
                item = file.create_dataset(address, wanted[owner], dtype)
                if value is not None:
                    item[...] = value(*owner, wanted[owner])
            for key, text in attributes.items():
                item.attrs[key] = _attribute(text, as_bytes=layout in ('tf-keras', 'keras1'))
    return path


def _owners(layout: str, depth: int, top: bool) -> dict[str, tuple[str, str]]:
    """Return (layer, 'kernel' or 'bias') of every array by address."""
    # The layer names that tf-keras omits are those of Keras 3.
    names = manifest('keras3' if layout == 'tf-keras3' else layout, depth, top)
    result = {}
    for address, (shape, _) in names.items():
        parent, _, last = address.rpartition('/')
        if shape is None:
            continue
        if parent.endswith('vars'):
            result[address] = (names[parent][1]['name'], 'kernel' if last == '0' else 'bias')
        else:
            layer = parent.rpartition('/')[2]
            result[address] = (layer, 'kernel' if 'kernel' in last or '_W_' in last else 'bias')
    return result


def _keras1(name: str) -> str:
    layer, _, kind = name.partition('/')
    return f'{layer}_{"W" if kind == "kernel:0" else "b"}_1:0'


def _attribute(text, as_bytes: bool):
    if isinstance(text, str):
        return text
    if not text:
        return np.array([])
    return np.array([t.encode() for t in text]) if as_bytes else np.array(text, dtype=object)
