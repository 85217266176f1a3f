"""The safetensors format: arrays in one file, or in several shards with an index.

A file holds the length of the header in 8 bytes, the header as JSON, and the arrays. Hugging Face's
library only validates it; arrays are read one by one from the offsets in the header, because the
library maps the file, and mapped pages count as memory of the process while memory is free.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxtrain.errors import UserError

DTYPES = {
    'F64': np.dtype('f8'),
    'F32': np.dtype('f4'),
    'F16': np.dtype('f2'),
    'BF16': np.dtype(jnp.bfloat16),
    'I64': np.dtype('i8'),
    'I32': np.dtype('i4'),
    'I16': np.dtype('i2'),
    'I8': np.dtype('i1'),
    'U64': np.dtype('u8'),
    'U32': np.dtype('u4'),
    'U16': np.dtype('u2'),
    'U8': np.dtype('u1'),
    'BOOL': np.dtype('?'),
}


def read_header(path: Path) -> dict[str, tuple[jax.ShapeDtypeStruct, int]]:
    """Return (shape and dtype, first byte in the file) of every array by key.

    Raises:
      UserError: the file is not a complete safetensors file, or a dtype is not in DTYPES.
    """
    try:
        with safe_open(path, 'np'):
            pass
        with path.open('rb') as file:
            (length,) = struct.unpack('<Q', file.read(8))
            header = json.loads(file.read(length))
    except (OSError, SafetensorError, ValueError, struct.error) as error:
        reason = ' '.join(str(error).split())
        raise UserError(
            f'{path} is not a complete safetensors file ({reason}); save or download it again'
        ) from error
    header.pop('__metadata__', None)
    return {key: _entry(path, key, entry, 8 + length) for key, entry in header.items()}


def read_index(path: Path) -> dict[str, str]:
    """Return the file name of every key in a shard index (model.safetensors.index.json).

    Raises:
      UserError: the file is not a valid index.
    """
    try:
        weight_map = json.loads(path.read_text())['weight_map']
        places = {str(key): str(name) for key, name in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        places = {}
    if not places:
        raise UserError(f'{path} is not a shard index; save or download it again')
    return places


def _entry(
    path: Path, key: str, entry: Mapping[str, Any], start: int
) -> tuple[jax.ShapeDtypeStruct, int]:
    if entry['dtype'] not in DTYPES:
        raise UserError(
            f'{path}: {key} has the dtype {entry["dtype"]}, which is not supported; '
            f'save it as one of {", ".join(DTYPES)}'
        )
    leaf = jax.ShapeDtypeStruct(tuple(entry['shape']), DTYPES[entry['dtype']])
    return leaf, start + entry['data_offsets'][0]
