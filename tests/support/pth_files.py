"""PyTorch's files written without PyTorch: both formats of torch.save, and malicious pickles.

The layouts are those of torch's serialization.py; the reader is also tested on
tests/golden/pth_*.pth, which torch itself wrote.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.weights.formats.pth_file import STORAGES

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {
    'protocol_version': VERSION,
    'little_endian': True,
    'type_sizes': {'short': 2, 'int': 4, 'long': 4},
}
_NAMES = {dtype: name for name, dtype in STORAGES.items()}


@dataclass(frozen=True)
class Global:
    """A name that unpickling looks up, whether it can be imported here or not."""

    module: str
    name: str

    def __call__(self, *_):
        raise NotImplementedError


@dataclass(frozen=True)
class Call:
    """An object whose pickle calls `function(*arguments)`."""

    function: Global
    arguments: tuple

    def __reduce__(self):
        return self.function, self.arguments


@dataclass(frozen=True, eq=False)
class Storage:
    """A contiguous array of numbers that tensors are views of.

    Attributes:
      numbers: the numbers to write.
      key: its name in the file, '' for the next free number.
      view: the entry that PyTorch before 0.4 wrote for a view of another storage.
    """

    numbers: np.ndarray
    key: str = ''
    view: tuple | None = None


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, in elements; it may be invalid."""

    storage: Storage
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: Any = 0

    def __reduce__(self):
        place = self.storage, self.offset, self.shape, self.stride, False, OrderedDict()
        return Global('torch._utils', '_rebuild_tensor_v2'), place


def tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor in a separate storage."""
    array = np.array(array, order='C')  # ascontiguousarray gives scalars an axis
    stride = tuple(step // array.itemsize for step in array.strides)
    return Tensor(Storage(array.reshape(-1)), array.shape, stride)


def write_zip(path: Path, content: Any, folder: str = 'archive', byteorder: str = 'little') -> Path:
    """Write a file as torch.save does since 1.6."""
    pickled, storages = _pickle(content)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'{folder}/data.pkl', pickled)
        archive.writestr(f'{folder}/byteorder', byteorder)
        for key, storage in storages.items():
            with archive.open(f'{folder}/data/{key}', 'w') as member:
                member.write(storage.numbers.view(np.uint8))
        archive.writestr(f'{folder}/version', '3\n')
    return path


def write_stream(path: Path, content: Any, system: dict = SYSTEM) -> Path:
    """Write a file as torch.save did before, and does with _use_new_zipfile_serialization=False."""
    pickled, storages = _pickle(content, legacy=True)
    with path.open('wb') as file:
        for value in (MAGIC, VERSION, system):
            pickle.dump(value, file, protocol=2)
        file.write(pickled)
        pickle.dump(list(storages), file, protocol=2)
        for storage in storages.values():
            file.write(struct.pack('<q', storage.numbers.size))
            file.write(storage.numbers.view(np.uint8))
    return path


WRITERS = {'zip': write_zip, 'stream': write_stream}


def _pickle(content: Any, legacy: bool = False) -> tuple[bytes, dict[str, Storage]]:
    """Return (pickle, storages by key)."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, legacy)
    pickler.dump(content)
    return buffer.getvalue(), {key: storage for key, storage in pickler.storages.values()}


class _Pickler(pickle._Pickler):  # the Python version, which can write arbitrary names
    def __init__(self, file, legacy: bool):
        super().__init__(file, protocol=2)
        self.legacy = legacy
        self.storages: dict[int, tuple[str, Storage]] = {}

    def save(self, obj, *args, **options):
        if isinstance(obj, Global):
            self.write(b'c' + f'{obj.module}\n{obj.name}\n'.encode())
        else:
            super().save(obj, *args, **options)

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        key = obj.key or str(len(self.storages))
        key, _ = self.storages.setdefault(id(obj), (key, obj))
        name = Global('torch', _NAMES[obj.numbers.dtype])
        reference = 'storage', name, key, 'cpu', obj.numbers.size
        return (*reference, obj.view) if self.legacy else reference
