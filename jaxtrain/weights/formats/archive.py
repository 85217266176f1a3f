"""An archive: the arrays of a weights file by key, of any format, none read before it is asked."""

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxtrain.errors import UserError
from jaxtrain.weights.formats import blocks, h5, npz_file, pth_file, safetensors_file

SUFFIXES = ('.safetensors', '.npz', '.h5', '.hdf5', '.keras', '.pth', '.pt', '.bin')
INDEX = '.index.json'  # of a file in several shards
# Files of weights' suffix beside them that are none.
NO_WEIGHTS = ('training_args.bin', 'optimizer.pt', 'scheduler.pt', 'optimizer.bin')


@dataclass(frozen=True)
class Archive:
    """An open weights file, or several that make up one.

    Attributes:
      path: the file or folder that was named.
      files: the files that hold the arrays, whose sha256 tells the weights.
      format: how they are stored: 'safetensors', 'npz', 'pth', or a layout of Keras's HDF5 files.
      arrays: shape and dtype of every array by key, in the order of the file.
      read: key -> the array as it is stored, in pieces along its first axis, each valid until the
        next is asked for. Raises UserError where the file is damaged.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    arrays: Mapping[str, jax.ShapeDtypeStruct]
    read: Callable[[str], Iterator[np.ndarray]]

    @property
    def folder(self) -> Path:
        """Where files beside the weights are: config.json, tokenizer.json."""
        return self.files[0].parent


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The weights in a file, or in a folder that holds just one set of them.

    Raises:
      UserError: no such file, none or several in the folder, one that is damaged or of no format
        that is known, or one that wants to run code.
    """
    file = _choose(path) if path.is_dir() else path
    if not file.is_file():
        raise UserError(f'{path} does not exist; give a file of weights, or the folder of one')
    if file.name.endswith(INDEX):
        yield _sharded(path, file)
    elif _format(file) == 'h5':
        with h5.open_file(file) as opened:
            yield _of_h5(path, file, opened)
    else:
        yield _single(path, file)


def _choose(folder: Path) -> Path:
    """The one weights file in a folder, or the index of its shards."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith('.'))
    indices = [name for name in names if name.endswith(INDEX)]
    shards = {s for name in indices for s in safetensors_file.read_index(folder / name).values()}
    files = [n for n in names if n.lower().endswith(SUFFIXES) and n not in {*NO_WEIGHTS, *shards}]
    found = indices + files
    if not found:
        raise UserError(
            f'{folder} holds no weights ({", ".join(SUFFIXES)}); give the folder that does, or '
            'the file'
        )
    if len(found) > 1:
        raise UserError(
            f'{folder} holds several: {", ".join(found[:4])}{" ..." if len(found) > 4 else ""}; '
            'give the file that is meant'
        )
    return folder / found[0]


def _format(file: Path) -> str:
    """'h5', 'safetensors', 'npz' or 'pth', by what is in the file; by its suffix where that is too
    damaged to tell.
    """
    try:
        with file.open('rb') as opened:
            start = opened.read(16)
        names = _members(file) if start[:4] == b'PK\x03\x04' else []
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split())
        raise UserError(f'{file} cannot be read ({reason}); save or download it again') from error
    if names:
        if any(name.rpartition('/')[2] == 'data.pkl' for name in names):
            return 'pth'
        return 'npz' if all(name.endswith('.npy') for name in names) else 'h5'
    if start[:8] == b'\x89HDF\r\n\x1a\n':
        return 'h5'
    if start[8:9] == b'{':
        return 'safetensors'
    if start[:1] == b'\x80':
        return 'pth'
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f'{file} is of no format that is read ({", ".join(SUFFIXES)}); give a file of weights'
        )
    return {'.safetensors': 'safetensors', '.npz': 'npz'}.get(
        suffix, 'h5' if suffix in ('.h5', '.hdf5', '.keras') else 'pth'
    )


def _members(file: Path) -> list[str]:
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


def _single(path: Path, file: Path) -> Archive:
    kind = _format(file)
    if kind == 'safetensors':
        found = safetensors_file.read_header(file)
        arrays = {key: leaf for key, (leaf, _) in found.items()}
        return Archive(path, (file,), kind, arrays, lambda key: blocks.read(file, *found[key]))
    if kind == 'npz':
        arrays = npz_file.read_header(file)
        return Archive(path, (file,), kind, arrays, lambda key: npz_file.read(file, key))
    tensors, storages = pth_file.read_header(file)
    return Archive(
        path,
        (file,),
        kind,
        {key: tensor.leaf for key, tensor in tensors.items()},
        lambda key: pth_file.read(file, tensors[key], storages[tensors[key].storage]),
    )


def _sharded(path: Path, index: Path) -> Archive:
    """Several files of one format, as their index lists them."""
    places = safetensors_file.read_index(index)
    parts = {}
    for name in dict.fromkeys(places.values()):
        file = index.parent / name
        if not file.is_file():
            raise UserError(f'{index} names {name}, which is not there; download it too')
        parts[name] = _single(path, file)
    for key, name in places.items():
        if key not in parts[name].arrays:
            raise UserError(f'{index} says that {name} holds {key}, but it does not; download both')
    for name, part in parts.items():
        if spare := [key for key in part.arrays if places.get(key) != name]:
            raise UserError(f'{index} does not list {spare[0]}, which {name} holds; download both')
    return Archive(
        path,
        tuple(index.parent / name for name in parts),
        next(iter(parts.values())).format,
        {key: parts[name].arrays[key] for key, name in places.items()},
        lambda key: parts[places[key]].read(key),
    )


def _of_h5(path: Path, file: Path, opened) -> Archive:
    layout = h5.read_layout(opened, file)
    arrays = {
        key: jax.ShapeDtypeStruct(shape, layout.dtypes[key]) for key, shape in layout.shapes.items()
    }

    def read(key: str) -> Iterator[np.ndarray]:
        leaf = arrays[key]
        if not leaf.shape:
            out = np.empty((), leaf.dtype)
            h5.read(opened, file, key, out)
            yield out
            return
        count, step = leaf.shape[0], blocks.rows_at_once(leaf)
        buffer = np.empty((min(step, count), *leaf.shape[1:]), leaf.dtype)
        for first in range(0, count, step):
            out = buffer[: count - first]
            h5.read(opened, file, key, out, first)
            yield out

    return Archive(path, (file,), layout.name, arrays, read)
