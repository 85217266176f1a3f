"""An archive: the arrays of a weights file by key, of any format, none read before it is asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np


@dataclass(frozen=True)
class Archive:
    """An open weights file, or several that make up one.

    Attributes:
      path: the file or folder that was named.
      files: the files that hold the arrays, whose sha256 tells the weights.
      format: how they are stored: 'safetensors', 'npz', 'pth', or a layout of Keras's HDF5 files.
      arrays: shape and dtype of every array by key, in the order of the file.
      read: key -> the array as it is stored, perhaps a read-only view of a mapped file. Raises
        UserError where the file is damaged.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    arrays: Mapping[str, jax.ShapeDtypeStruct]
    read: Callable[[str], np.ndarray]

    @property
    def folder(self) -> Path:
        """Where files beside the weights are: config.json, tokenizer.json."""
        return self.files[0].parent
