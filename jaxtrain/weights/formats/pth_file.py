"""PyTorch's files, read without PyTorch and without running any code in them.

`torch.save` writes a pickle in which each tensor names the storage that holds its numbers. In the
zip format, since 1.6, storages are members `NAME/data/KEY` beside `NAME/data.pkl`; in the older
format they follow the pickles in the same stream, each after its length. A pickle can call any
function: this reader allows only those that build a tensor, which it replaces with its own, and
refuses every other name.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.errors import UserError
from jaxtrain.weights.formats import blocks, wrappers

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
_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Tensor:
    """The location of a tensor's numbers.

    Attributes:
      storage: key of its storage.
      dtype: dtype of the storage.
      offset, shape, stride: the view of the storage, in elements.
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
        """Whether the numbers are contiguous in C order."""
        size = 1
        for n, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n != 1 and step != size:
                return False
            size *= n
        return True

    def end(self) -> int:
        """Return how many elements the storage needs at least. ValueError for an invalid view."""
        numbers = [self.offset, *self.shape, *self.stride]
        if any(type(n) is not int or n < 0 for n in numbers) or len(self.shape) != len(self.stride):
            raise ValueError(f'a tensor of shape {self.shape} and strides {self.stride}')
        if 0 in self.shape:
            return 0
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return self.offset + reach + 1


@dataclass(frozen=True)
class Header:
    """What a file holds, before any array is read.

    Attributes:
      tensors: by key.
      storages: by key, as (first byte in the file, size in bytes).
      taken: the name of the state dict within a checkpoint, '' if the file is a state dict.
      others: the names of the checkpoint's other state dicts, which are not read.
      beside: what the checkpoint holds beside its weights, such as the name of the architecture and
        the arguments of the training program.
    """

    tensors: dict[str, Tensor]
    storages: dict[str, tuple[int, int]]
    taken: str = ''
    others: tuple[str, ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)


def read_header(path: Path, order: tuple[str, ...] = ()) -> Header:
    """Return what a file holds.

    Args:
      path: the file.
      order: names of state dicts, the first of which is taken that the file has; others, by
        `wrappers.STATE_DICTS`, follow.

    Raises:
      UserError: the file is not a complete PyTorch file, would run code, or holds no weights.
    """
    try:
        content, storages = (_read_zip if zipfile.is_zipfile(path) else _read_stream)(path)
        header = replace(_state_dict(content, path, order), storages=storages)
        for key, tensor in header.tensors.items():
            size = storages.get(tensor.storage, (0, -1))[1]
            if tensor.end() * tensor.dtype.itemsize > size:
                raise UserError(
                    f'{path}: {key} extends beyond its storage, so the file is damaged; save or '
                    'download it again'
                )
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(
            f'{path} is not a complete file of torch.save ({reason}); save or download it again'
        ) from error
    return header


def read(path: Path, tensor: Tensor, place: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the pieces of a tensor, as `blocks.stream` does.

    A tensor that is not contiguous, such as a transposed one, is a single piece.

    Args:
      path: the file.
      tensor: a tensor that `read_header` returned.
      place: the first byte of its storage, and the size of the storage in bytes.

    Raises:
      UserError: the file ends before the tensor does.
    """
    start = place[0] + tensor.offset * tensor.dtype.itemsize
    if tensor.in_order:
        yield from blocks.read(path, tensor.leaf, start)
    elif 0 not in tensor.shape:
        flat, position = np.empty(tensor.end() - tensor.offset, tensor.dtype), 0
        for piece in blocks.read(path, jax.ShapeDtypeStruct(flat.shape, flat.dtype), start):
            flat[position : position + len(piece)] = piece
            position += len(piece)
        steps = [step * tensor.dtype.itemsize for step in tensor.stride]
        yield np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False)


def _read_zip(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (n for n in archive.namelist() if n.endswith('/data.pkl') or n == 'data.pkl')
        folder = pickled.removesuffix('data.pkl')
        order = f'{folder}byteorder'
        if order in archive.namelist() and archive.read(order) != b'little':
            raise UserError(f'{path} was written on a big-endian machine; save it as safetensors')
        content = _Unpickler(io.BytesIO(archive.read(pickled)), path).load()
        storages = {}
        for info in archive.infolist():
            if info.filename.startswith(f'{folder}data/'):
                if info.compress_type != zipfile.ZIP_STORED:
                    raise UserError(f'{path} holds compressed storages; save it with torch.save')
                place = _data_start(archive, info), info.file_size
                storages[info.filename.removeprefix(f'{folder}data/')] = place
    return content, storages


def _data_start(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Return the first byte of an uncompressed member, after its local header."""
    file = archive.fp
    assert file is not None  # while the archive is open
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack('<HH', file.read(4))
    return info.header_offset + 30 + name + extra


def _read_stream(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    with path.open('rb') as file:
        if _Unpickler(file, path).load() != _MAGIC:
            raise UserError(f'{path} is not a file of torch.save; give the weights file')
        _Unpickler(file, path).load()  # the protocol version
        system = _Unpickler(file, path).load()
        if not system['little_endian']:
            raise UserError(f'{path} was written on a big-endian machine; save it as safetensors')
        unpickler = _Unpickler(file, path)
        content = unpickler.load()
        storages = {}
        for key in _Unpickler(file, path).load():
            (count,) = struct.unpack('<q', file.read(8))
            size = count * unpickler.dtypes[str(key)].itemsize
            storages[str(key)] = file.tell(), size
            file.seek(size, io.SEEK_CUR)
            if file.tell() > path.stat().st_size:
                raise UserError(f'{path} is truncated; save or download it again')
    return content, storages


class _Unpickler(pickle.Unpickler):
    """Builds Tensors, and refuses any other call that a pickle makes."""

    def __init__(self, file, path: Path):
        super().__init__(file, encoding='utf-8')
        self._path = path
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == 'torch' and name.endswith('Storage'):
            if name not in STORAGES:
                raise UserError(
                    f'{self._path} holds a {name}, which is not supported; save it as one of '
                    f'{", ".join(STORAGES)}'
                )
            return name
        if (module, name) == ('argparse', 'Namespace'):
            return type(name, (), {})  # a file may change the class, so it has its own
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise UserError(
            f'{self._path} would run {module}.{name}; weights need no code: save '
            'model.state_dict() alone, or as safetensors'
        )

    def persistent_load(self, reference: tuple) -> tuple[str, np.dtype]:
        _, name, key, _, _, *view = reference
        if any(view):
            raise UserError(
                f'{self._path} holds views in the format of PyTorch before 0.4; load and '
                'save it again'
            )
        # A storage with two dtypes would have two lengths.
        dtype = self.dtypes.setdefault(str(key), STORAGES[name])
        if dtype != STORAGES[name]:
            raise ValueError(f'storage {key} has two dtypes')
        return str(key), dtype


def _tensor(storage: tuple[str, np.dtype], offset: int, shape, stride, *_) -> Tensor:
    return Tensor(*storage, offset, tuple(shape), tuple(stride))


def _path(*parts: str) -> str:
    return '/'.join(parts)


# Beside tensors, only plain data, which checkpoints of common trainers hold.
_ALLOWED = {
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch._utils', '_rebuild_tensor'): _tensor,
    ('torch._utils', '_rebuild_parameter'): lambda tensor, *_: tensor,
    ('collections', 'OrderedDict'): OrderedDict,
    ('collections', 'Counter'): dict,
    ('torch', 'Size'): tuple,
    ('torch', 'device'): lambda *words: words,
    ('pathlib', 'PosixPath'): _path,
    ('pathlib', 'WindowsPath'): _path,
}


def _state_dict(content: Any, path: Path, order: tuple[str, ...]) -> Header:
    """Return the header (without storages) of a state dict, or of a checkpoint that holds one."""
    if not isinstance(content, Mapping):
        content = {}
    chosen, name, others = wrappers.choose(content, order)
    if name:
        inner = _state_dict(chosen, path, order)
        beside = {str(k): v for k, v in content.items() if k not in (name, *others)}
        return Header(
            inner.tensors, {}, f'{name}.{inner.taken}'.rstrip('.'), (*others, *inner.others),
            {**beside, **inner.beside},
        )  # fmt: skip
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        inside = [str(k) for k, v in content.items() if _is_state_dict(v)]
        raise UserError(
            f'{path} holds no weights by name; save model.state_dict()'
            + (f' (it has weights under {", ".join(inside)}; save one of them)' if inside else '')
        )
    return Header(tensors, {})


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and any(isinstance(v, Tensor) for v in content.values())
