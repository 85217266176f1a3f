"""PyTorch's files, read without PyTorch and without running what is in them.

`torch.save` writes a pickle whose tensors name the storage that they lie in. In the zip format,
since 1.6, storages are members `NAME/data/KEY` beside `NAME/data.pkl`; in the older one they follow
the pickles in the same stream, each after its length. A pickle can call anything: this reader lets
it call what makes a tensor, stood in for here, and refuses every other name.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.errors import UserError
from jaxtrain.weights.formats import blocks

STORAGES = {
    'DoubleStorage': np.dtype('f8'),
    'FloatStorage': np.dtype('f4'),
    'HalfStorage': np.dtype('f2'),
    'BFloat16Storage': np.dtype(jnp.bfloat16),
    'LongStorage': np.dtype('i8'),
    'IntStorage': np.dtype('i4'),
    'ShortStorage': np.dtype('i2'),
    'CharStorage': np.dtype('i1'),
    'ByteStorage': np.dtype('u1'),
    'BoolStorage': np.dtype('?'),
}
# Where a checkpoint keeps the weights, if it holds more than those.
WRAPPERS = ('state_dict', 'model', 'model_state_dict', 'module')
_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Tensor:
    """Where a tensor's numbers are.

    Attributes:
      storage: key of its storage.
      dtype: of the storage.
      offset, shape, stride: in elements.
    """

    storage: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def leaf(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    @property
    def in_order(self) -> bool:
        """Whether the numbers lie one after the other, as C has them."""
        size = 1
        for n, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n != 1 and step != size:
                return False
            size *= n
        return True

    def end(self) -> int:
        """Elements that the storage must have at least. ValueError if this is no tensor."""
        numbers = [self.offset, *self.shape, *self.stride]
        if any(type(n) is not int or n < 0 for n in numbers) or len(self.shape) != len(self.stride):
            raise ValueError(f'a tensor of shape {self.shape} and strides {self.stride}')
        if 0 in self.shape:
            return 0
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return self.offset + reach + 1


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
    """(key -> tensor, storage -> (first byte in the file, bytes)).

    Raises:
      UserError: not a whole file of PyTorch, one that wants to run code, or one without weights.
    """
    try:
        found, storages = (_read_zip if zipfile.is_zipfile(path) else _read_stream)(path)
        tensors = _tensors(found, path)
        for key, tensor in tensors.items():
            size = storages.get(tensor.storage, (0, -1))[1]
            if tensor.end() * tensor.dtype.itemsize > size:
                raise UserError(
                    f'{path}: {key} reaches beyond its storage, so the file is damaged; save or '
                    'download it again'
                )
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(
            f'{path} is not a whole file of torch.save ({reason}); save or download it again'
        ) from error
    return tensors, storages


def read(path: Path, tensor: Tensor, place: tuple[int, int]) -> Iterator[np.ndarray]:
    """The pieces of a tensor, as `blocks.stream` yields them.

    One whose numbers lie in another order, as a transposed one's do, is a single piece.

    Args:
      path: the file.
      tensor: one that `read_header` has found.
      place: the first byte of its storage, and how many it has.

    Raises:
      UserError: the file ends before the tensor does.
    """
    start = place[0] + tensor.offset * tensor.dtype.itemsize
    if tensor.in_order:
        yield from blocks.read(path, tensor.leaf, start)
    elif 0 not in tensor.shape:
        flat, at = np.empty(tensor.end() - tensor.offset, tensor.dtype), 0
        for piece in blocks.read(path, jax.ShapeDtypeStruct(flat.shape, flat.dtype), start):
            flat[at : at + len(piece)] = piece
            at += len(piece)
        steps = [step * tensor.dtype.itemsize for step in tensor.stride]
        yield np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False)


def _read_zip(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (n for n in archive.namelist() if n.endswith('/data.pkl') or n == 'data.pkl')
        folder = pickled.removesuffix('data.pkl')
        order = f'{folder}byteorder'
        if order in archive.namelist() and archive.read(order) != b'little':
            raise UserError(f'{path} was written on a big-endian machine; save it as safetensors')
        found = _Unpickler(io.BytesIO(archive.read(pickled)), path).load()
        storages = {}
        for info in archive.infolist():
            if info.filename.startswith(f'{folder}data/'):
                if info.compress_type != zipfile.ZIP_STORED:
                    raise UserError(f'{path} is compressed inside; save it with torch.save')
                place = _data_start(archive, info), info.file_size
                storages[info.filename.removeprefix(f'{folder}data/')] = place
    return found, storages


def _data_start(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """The first byte of a member that is stored as it is, behind its local header."""
    file = archive.fp
    assert file is not None  # as long as the archive is open
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack('<HH', file.read(4))
    return info.header_offset + 30 + name + extra


def _read_stream(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    with path.open('rb') as file:
        if _Unpickler(file, path).load() != _MAGIC:
            raise UserError(f'{path} is no file of torch.save; give the one that holds the weights')
        _Unpickler(file, path).load()  # the protocol's version
        system = _Unpickler(file, path).load()
        if not system['little_endian']:
            raise UserError(f'{path} was written on a big-endian machine; save it as safetensors')
        unpickler = _Unpickler(file, path)
        found = unpickler.load()
        storages = {}
        for key in _Unpickler(file, path).load():
            (count,) = struct.unpack('<q', file.read(8))
            size = count * unpickler.dtypes[str(key)].itemsize
            storages[str(key)] = file.tell(), size
            file.seek(size, io.SEEK_CUR)
            if file.tell() > path.stat().st_size:
                raise UserError(f'{path} is truncated; save or download it again')
    return found, storages


class _Unpickler(pickle.Unpickler):
    """Makes Tensors, and refuses whatever else a pickle may call."""

    def __init__(self, file, path: Path):
        super().__init__(file, encoding='utf-8')
        self._path = path
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == 'torch' and name.endswith('Storage'):
            if name not in STORAGES:
                raise UserError(
                    f'{self._path} holds a {name}, which is not read; save it as one of '
                    f'{", ".join(STORAGES)}'
                )
            return name
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise UserError(
            f'{self._path} wants to run {module}.{name}; a file of weights needs no code: save '
            'model.state_dict() alone, or as safetensors'
        )

    def persistent_load(self, found: tuple) -> tuple[str, np.dtype]:
        _, name, key, _, _, *view = found
        if any(view):
            raise UserError(
                f'{self._path} holds views as PyTorch wrote them before 0.4; load and save it again'
            )
        # Two dtypes for one storage would be two lengths for it.
        dtype = self.dtypes.setdefault(str(key), STORAGES[name])
        if dtype != STORAGES[name]:
            raise ValueError(f'storage {key} of two kinds')
        return str(key), dtype


def _tensor(storage: tuple[str, np.dtype], offset: int, shape, stride, *_) -> Tensor:
    return Tensor(*storage, offset, tuple(shape), tuple(stride))


_ALLOWED = {
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch._utils', '_rebuild_tensor'): _tensor,
    ('torch._utils', '_rebuild_parameter'): lambda tensor, *_: tensor,
    ('collections', 'OrderedDict'): OrderedDict,
    ('torch', 'Size'): tuple,
}


def _tensors(found: Any, path: Path) -> dict[str, Tensor]:
    """The weights in what a file holds: itself, or the part of a checkpoint that they are."""
    if isinstance(found, Mapping):
        for name in WRAPPERS:
            if isinstance(found.get(name), Mapping):
                return _tensors(found[name], path)
        tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    raise UserError(f'{path} holds no weights by name; save model.state_dict()')
