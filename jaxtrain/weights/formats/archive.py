"""A lazy view of a weights file in any format: its arrays by key, each read only on request."""

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.errors import UserError
from jaxtrain.weights.formats import blocks, h5, npz_file, pth_file, safetensors_file, wrappers
from jaxtrain.weights.schemas.schema import Given

SUFFIXES = ('.safetensors', '.npz', '.h5', '.hdf5', '.keras', '.pth', '.pt', '.bin')
INDEX = '.index.json'  # ends the name of the index of a sharded file
# Files that often lie beside weights and have their suffix, but hold no weights.
NO_WEIGHTS = ('training_args.bin', 'optimizer.pt', 'scheduler.pt', 'optimizer.bin')


@dataclass(frozen=True)
class Archive:
    """An open weights file, or an open set of shards.

    Attributes:
      path: the file or folder that the user gave.
      files: the files that hold the arrays; their sha256 identifies the weights.
      format: 'safetensors', 'npz', 'pth', or the name of a Keras HDF5 layout (`h5.Layout.name`).
      arrays: shape and dtype of every array by key, in file order.
      read: key -> the array as stored, in pieces along its first axis; each piece is valid until
        the next one is requested. Raises UserError if the file is damaged.
      beside: what a checkpoint of PyTorch holds beside its weights.
      state_dict: the name of the weights within a checkpoint of PyTorch, '' if it is its own.
      notes: sentences that report which state dict of a checkpoint was taken, and which wrappers
        the keys lost.
      given: what the user states about the weights; `given.read` reads the files beside them.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    arrays: Mapping[str, jax.ShapeDtypeStruct]
    read: Callable[[str], Iterator[np.ndarray]]
    beside: Mapping[str, Any] = field(default_factory=dict)
    state_dict: str = ''
    notes: tuple[str, ...] = ()
    given: Given = field(default_factory=Given)

    @property
    def folder(self) -> Path:
        """The folder that also holds config.json, tokenizer.json and similar files."""
        return self.files[0].parent


@contextlib.contextmanager
def open_archive(path: Path, state_dicts: tuple[str, ...] = ()) -> Iterator[Archive]:
    """Open the weights in a file, or in a folder that holds exactly one set of weights.

    Args:
      path: the file or folder.
      state_dicts: names of state dicts within a checkpoint of PyTorch, in the order in which the
        origin's own reader chooses one.

    Raises:
      UserError: the file does not exist, the folder holds no weights or several sets of them, or
        the file is damaged, has an unknown format, or would run code.
    """
    file = _choose(path) if path.is_dir() else path
    if not file.is_file():
        raise UserError(f'{path} does not exist; give a weights file or its folder')
    if file.name.endswith(INDEX):
        yield _plain(_sharded(path, file))
    elif _format(file) == 'h5':
        with h5.open_file(file) as opened:
            yield _of_h5(path, file, opened)
    else:
        yield _plain(_single(path, file, state_dicts))


def _choose(folder: Path) -> Path:
    """Return the one weights file in a folder, or the index of its shards."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith('.'))
    indices = [name for name in names if name.endswith(INDEX)]
    shards = {s for name in indices for s in safetensors_file.read_index(folder / name).values()}
    files = [n for n in names if n.lower().endswith(SUFFIXES) and n not in {*NO_WEIGHTS, *shards}]
    candidates = indices + files
    if not candidates:
        raise UserError(
            f'{folder} holds no weights ({", ".join(SUFFIXES)}); give the weights file or its '
            'folder'
        )
    if len(candidates) > 1:
        raise UserError(
            f'{folder} holds several weights files: {", ".join(candidates[:4])}'
            f'{" ..." if len(candidates) > 4 else ""}; give one of them'
        )
    return folder / candidates[0]


def _format(file: Path) -> str:
    """Return 'h5', 'safetensors', 'npz' or 'pth', judged by the content of the file, or by its
    suffix if the content is not recognized.
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
            f'{file} has no supported format ({", ".join(SUFFIXES)}); give a weights file'
        )
    return {'.safetensors': 'safetensors', '.npz': 'npz'}.get(
        suffix, 'h5' if suffix in ('.h5', '.hdf5', '.keras') else 'pth'
    )


def _members(file: Path) -> list[str]:
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


def _plain(archive: Archive) -> Archive:
    """Return the archive with keys without the wrappers of PyTorch."""
    if archive.format not in ('safetensors', 'pth'):
        return archive
    names, note = wrappers.plain_names(archive.arrays)
    return replace(
        archive,
        arrays={name: archive.arrays[key] for name, key in names.items()},
        read=lambda name: archive.read(names[name]),
        notes=(*archive.notes, note) if note else archive.notes,
    )


def _single(path: Path, file: Path, state_dicts: tuple[str, ...] = ()) -> Archive:
    kind = _format(file)
    if kind == 'safetensors':
        entries = safetensors_file.read_header(file)
        arrays = {key: leaf for key, (leaf, _) in entries.items()}
        return Archive(path, (file,), kind, arrays, lambda key: blocks.read(file, *entries[key]))
    if kind == 'npz':
        arrays = npz_file.read_header(file)
        return Archive(path, (file,), kind, arrays, lambda key: npz_file.read(file, key))
    header = pth_file.read_header(file, state_dicts)
    tensors, storages = header.tensors, header.storages
    note = f'the weights under {header.taken!r} are taken' if header.taken else ''
    if header.others:
        others = ', '.join(map(repr, header.others))
        note += f', and not those under {others} (--field=state_dict=NAME takes others)'
    return Archive(
        path,
        (file,),
        kind,
        {key: tensor.leaf for key, tensor in tensors.items()},
        lambda key: pth_file.read(file, tensors[key], storages[tensors[key].storage]),
        header.beside,
        header.taken,
        (note,) if header.others or 'ema' in header.taken else (),
    )


def _sharded(path: Path, index: Path) -> Archive:
    """Open the shards that an index lists as one archive."""
    places = safetensors_file.read_index(index)
    parts = {}
    for name in dict.fromkeys(places.values()):
        file = index.parent / name
        if not file.is_file():
            raise UserError(f'{index} names {name}, which does not exist; download it too')
        parts[name] = _single(path, file)
    for key, name in places.items():
        if key not in parts[name].arrays:
            raise UserError(f'{index} lists {key} in {name}, which does not hold it; download both')
    for name, part in parts.items():
        if unlisted := [key for key in part.arrays if places.get(key) != name]:
            raise UserError(
                f'{index} does not list {unlisted[0]}, which {name} holds; download both'
            )
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
