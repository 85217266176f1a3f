"""PyTorch's files made without PyTorch: both formats of torch.save, and pickles that ask for more.

The layouts are those of torch's serialization.py; tests/golden/pth_*.pth, which torch itself has
written, hold the reader to the same.
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
    """A name that the pickle will look up, importable here or not."""

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
    """Numbers that tensors lie in, one after the other.

    Attributes:
      numbers: what is written.
      key: its name in the file, '' for the next number.
      view: what PyTorch before 0.4 wrote of a storage that is a part of another.
    """

    numbers: np.ndarray
    key: str = ''
    view: tuple | None = None


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, in elements, whether that is possible or not."""

    storage: Storage
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: Any = 0

    def __reduce__(self):
        place = self.storage, self.offset, self.shape, self.stride, False, OrderedDict()
        return Global('torch._utils', '_rebuild_tensor_v2'), place


def tensor(array: np.ndarray) -> Tensor:
    """An array in a storage of its own."""
    array = np.array(array, order='C')  # ascontiguousarray gives scalars an axis
    stride = tuple(step // array.itemsize for step in array.strides)
    return Tensor(Storage(array.reshape(-1)), array.shape, stride)


def write_zip(path: Path, found: Any, folder: str = 'archive', byteorder: str = 'little') -> Path:
    """As torch.save does since 1.6."""
    pickled, storages = _pickle(found)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'{folder}/data.pkl', pickled)
        archive.writestr(f'{folder}/byteorder', byteorder)
        for key, storage in storages.items():
            with archive.open(f'{folder}/data/{key}', 'w') as member:
                member.write(storage.numbers.view(np.uint8))
        archive.writestr(f'{folder}/version', '3\n')
    return path


def write_stream(path: Path, found: Any, system: dict = SYSTEM) -> Path:
    """As torch.save did before, and does with _use_new_zipfile_serialization=False."""
    pickled, storages = _pickle(found, legacy=True)
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


def _pickle(found: Any, legacy: bool = False) -> tuple[bytes, dict[str, Storage]]:
    """(the pickle, key -> storage)."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, legacy)
    pickler.dump(found)
    return buffer.getvalue(), {key: storage for key, storage in pickler.storages.values()}


class _Pickler(pickle._Pickler):  # the one in Python: it lets names be written as they are
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
        found = 'storage', name, key, 'cpu', obj.numbers.size
        return (*found, obj.view) if self.legacy else found
