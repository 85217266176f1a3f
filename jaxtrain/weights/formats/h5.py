"""Keras's HDF5 files, read without Keras: which layer owns which array, and each array on request.

Four layouts are distinguished by the content of the file, and read into the same `Layout`:

| layout        | written by                                      | address of an array            |
|---------------|-------------------------------------------------|--------------------------------|
| keras3        | `.weights.h5`, `.keras` of Keras 3 and tf-keras | `layers/conv2d_7/vars/0`       |
| keras3-legacy | `.h5` of Keras 3                                | `model_weights/fc1/fc1/kernel` |
| tf-keras      | `.h5` of Keras 2 and tf-keras                   | `fc1/fc1/kernel:0`             |
| keras1        | Keras 1: the weights that Keras downloads       | `fc1/fc1_W_1:0`                |

In the last three the attributes `layer_names` and `weight_names` give the order of layers and of a
layer's arrays (HDF5 itself lists keys alphabetically); an attribute too long for HDF5 is split into
`layer_names0`, `layer_names1` and so on. In the first, layers are numbered by class in the order of
the model, and the attribute `name` of `vars`, which tf-keras does not write, is the layer's name.
"""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from jaxtrain.errors import UserError

if TYPE_CHECKING:
    import h5py

_ARCHIVED, _CONFIG = 'model.weights.h5', 'config.json'


@dataclass(frozen=True)
class Layer:
    """A layer of the saved model.

    Attributes:
      name: the layer's name, such as 'fc1'.
      kind: its class as Keras writes it, such as 'conv2d'. Only layout keras3 stores it; elsewhere
        it is the name without its number, which is the class if Keras chose the name.
      parent: address of the model that contains the layer, '' for the outermost model.
      arrays: addresses of its arrays in Keras's order: kernel, bias.
    """

    name: str
    kind: str
    parent: str
    arrays: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The layers and arrays of a file.

    Attributes:
      name: 'keras3', 'keras3-legacy', 'tf-keras' or 'keras1'.
      layers: in model order, including layers without arrays; nested models are flattened.
      shapes, dtypes: of every array in the file, by address.
    """

    name: str
    layers: tuple[Layer, ...]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file, or the one inside a `.keras` archive, without reading its weights.

    Raises:
      UserError: the path does not exist, is a folder, or is not a complete file of this format.
    """
    import h5py

    if not path.is_file():
        what = 'is a folder' if path.is_dir() else 'does not exist'
        raise UserError(f'{path} {what}; give the .h5 or .keras file that Keras saved')
    with contextlib.ExitStack() as stack:
        try:
            source: Path | IO[bytes] = path
            if zipfile.is_zipfile(path):
                archive = stack.enter_context(zipfile.ZipFile(path))
                source = stack.enter_context(archive.open(_ARCHIVED))
            file = stack.enter_context(h5py.File(source, 'r'))
        except Exception as error:  # a damaged archive raises anything
            raise UserError(
                f'{path} is not a complete HDF5 or .keras file ({_short(error)}); save or download '
                'it again'
            ) from error
        yield file


def read_model_config(path: Path) -> str:
    """Return the JSON text of the model config in a file, '' if it holds weights only.

    Raises:
      UserError: as `open_file`.
    """
    with open_file(path) as file:
        text = file.attrs.get('model_config', '')
        if not zipfile.is_zipfile(path):
            return _text(text)
    with zipfile.ZipFile(path) as archive:
        return archive.read(_CONFIG).decode() if _CONFIG in archive.namelist() else ''


def read_layout(file: h5py.File, path: Path) -> Layout:
    """Return the layers and arrays of an open file.

    Raises:
      UserError: the file has none of the layouts, its attributes and arrays disagree, or a dataset
        is not numeric.
    """
    import h5py

    datasets: dict[str, h5py.Dataset] = {}

    def collect(address: str, item) -> None:
        if isinstance(item, h5py.Dataset):
            datasets[address] = item

    try:
        file.visititems(collect)
        root = file.get('model_weights', file)
        if 'layers' in file:
            name, layers = 'keras3', tuple(_numbered(file, ''))
        elif any(key.startswith('layer_names') for key in root.attrs):
            layers = tuple(_listed(root))
            name = _convention([a for layer in layers for a in layer.arrays])
        else:
            raise UserError(
                f'{path} holds no weights as Keras saves them (its keys: {_few(list(file))}); '
                'give the file that model.save or model.save_weights wrote'
            )
        shapes = {address: item.shape for address, item in datasets.items()}
        dtypes = {address: item.dtype for address, item in datasets.items()}
    except UserError:
        raise
    except Exception as error:  # a damaged file raises anything
        raise UserError(
            f'{path} is damaged ({_short(error)}); save or download it again'
        ) from error
    for address, dtype in dtypes.items():
        if dtype.kind not in 'fiub' or shapes[address] is None:
            raise UserError(
                f'{path}: {address} has the dtype {dtype}, which is not numeric; save only weights'
            )
    for layer in layers:
        for address in layer.arrays:
            if address not in datasets:
                raise UserError(
                    f'{path}: layer {layer.name!r} lists {address}, which is not in the file; '
                    'save or download it again'
                )
    return Layout(name, layers, shapes, dtypes)


def read(file: h5py.File, path: Path, address: str, out: np.ndarray, first: int = 0) -> None:
    """Fill `out` with the rows of an array from row `first` on, as many as `out` has, or with the
    whole scalar. HDF5 converts them to the dtype of `out` piece by piece.

    Raises:
      UserError: the array is damaged, or holds a value that is not finite.
    """
    if not out.size:
        return
    try:
        rows = np.s_[first : first + len(out)] if out.ndim else ()
        file[address].read_direct(out, rows)
    except Exception as error:
        raise UserError(
            f'{path}: {address} is damaged ({_short(error)}); save or download it again'
        ) from error
    # isfinite on the whole array would need another quarter of its memory.
    if not np.isfinite([out.min(), out.max()]).all():
        raise UserError(
            f'{path}: {address} holds NaN or Inf (as {out.dtype}); take weights from '
            'before the training diverged'
        )


def _numbered(group: h5py.Group, prefix: str) -> Iterator[Layer]:
    """Yield the layers of keras3: `layers/KIND_NUMBER/vars/INDEX`; nested models have `layers`."""
    for key in sorted(group['layers'], key=_natural):
        address, item = f'{prefix}layers/{key}', group['layers'][key]
        if 'layers' in item:
            yield from _numbered(item, f'{address}/')
        elif 'vars' in item:
            name = _text(item['vars'].attrs.get('name', key))
            indices = sorted(item['vars'], key=_natural)
            arrays = tuple(f'{address}/vars/{i}' for i in indices)
            yield Layer(name, _natural(key)[0], prefix, arrays)


def _listed(root: h5py.Group) -> Iterator[Layer]:
    """Yield the layers of the other layouts, by `layer_names` and `weight_names`."""
    prefix = f'{root.name.strip("/")}/'.lstrip('/')
    for group in _names(root, 'layer_names'):
        names = _names(root[group], 'weight_names')
        owners: dict[str, list[str]] = {} if names else {group: []}
        for name in names:
            owners.setdefault(name.rpartition('/')[0], []).append(f'{prefix}{group}/{name}')
        # A group with several owners is a nested model, whose layers are the owners.
        nested = len(owners) > 1
        for owner, arrays in owners.items():
            name = owner.rpartition('/')[2] if nested else group
            yield Layer(name, _natural(name)[0], group if nested else '', tuple(arrays))


def _names(group: h5py.Group, attribute: str) -> list[str]:
    keys = [key for key in group.attrs if re.fullmatch(rf'{attribute}\d*', key)]
    return [_text(name) for key in sorted(keys, key=_natural) for name in group.attrs[key]]


def _convention(arrays: list[str]) -> str:
    last = [address.rpartition('/')[2] for address in arrays]
    if not any(name.endswith(':0') for name in last):
        return 'keras3-legacy'
    return 'keras1' if all(re.search(r'_[Wb](_\d+)?:0$', name) for name in last) else 'tf-keras'


def _natural(key: str) -> list:
    """Return a sort key with 'conv2d' < 'conv2d_2' < 'conv2d_10'."""
    parts = re.fullmatch(r'(.*?)_?(\d*)', key)
    assert parts is not None  # the pattern matches any key
    stem, number = parts.groups()
    return [stem, int(number or 0)]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _short(error: Exception) -> str:
    return str(error).strip('\'"').split('\n')[0] or type(error).__name__


def _few(names: list[str]) -> str:
    return ', '.join(names[:5]) + (' ...' if len(names) > 5 else '') or 'none'
