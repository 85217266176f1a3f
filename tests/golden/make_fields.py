"""Makes fields.json.xz and fields.npz: what each field of the files beside weights changes.

For each origin, a script walks through the config classes of the reference library. It sets each
field to another legal value, builds a tiny model, and computes its outputs in float64. The weights
are not stored: `make_weights.weight` makes them from each array's key, here and in the tests.

This requires the libraries that `make_weights` lists, and sentence-transformers; their versions are
recorded. It is run once for each origin, and leaves the cases of the others unchanged:

    python -m tests.golden.make_fields huggingface

A case of fields.json.xz has the name of its model, the file and field with the value (the first
case of a model has no field), the content of all files, the index of its arrays (keys and shapes,
folded as in weights.json), its input, and what the reference does: the index of its outputs in
fields.npz, which several cases may share, or the error that it raises.
"""

import importlib
import importlib.metadata
import json
import lzma
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.make_weights import folded, unfolded

HERE = Path(__file__).parent
LIBRARIES = (
    'torch', 'torchvision', 'transformers', 'timm', 'sentence-transformers', 'keras', 'numpy',
)  # fmt: skip


@dataclass
class FieldCase:
    """One value of one field.

    Attributes:
      origin: of `jaxtrain.weights.origins.origins.ORIGINS`.
      model: name of the tiny model, which the tests map to fields of `config.model`.
      file, field, value: what is set; '' and None in the first case of a model.
      files: relative path -> content of each file beside the weights.
      arrays: key -> shape.
      inputs: shape of an image ([h, w, c] of floats), rows of tokens, texts, or the shape of a
        uint8 image that is preprocessed ({'pixels': [h, w]}).
      outputs: float64 of the reference, or None if it raises an error.
      error: that error.
    """

    origin: str
    model: str
    file: str
    field: str
    value: Any
    files: dict[str, Any]
    arrays: dict[str, list[int]]
    inputs: Any
    outputs: np.ndarray | None = None
    error: str = ''


def load() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return (versions by origin, cases as dicts with their arrays and outputs)."""
    path = HERE / 'fields.json.xz'
    if not path.exists():
        return {}, []
    content = json.loads(lzma.decompress(path.read_bytes()))
    with np.load(HERE / 'fields.npz') as stored:
        outputs = dict(stored)
    for case in content['cases']:
        case['arrays'] = unfolded(content['arrays'][case['arrays']])
        if case['outputs'] is not None:
            case['outputs'] = outputs[str(case['outputs'])]
    return content['versions'], content['cases']


def save(versions: dict[str, Any], cases: list[dict[str, Any]]) -> None:
    arrays: list[Any] = []
    outputs: dict[bytes, tuple[int, np.ndarray]] = {}
    stored = []
    for case in cases:
        keys, made = folded(case['arrays']), case['outputs']
        if keys not in arrays:
            arrays.append(keys)
        place = None
        if made is not None:
            place, _ = outputs.setdefault(made.tobytes(), (len(outputs), made))
        stored.append({**case, 'arrays': arrays.index(keys), 'outputs': place})
    content = {'versions': versions, 'arrays': arrays, 'cases': stored}
    text = json.dumps(content, separators=(',', ':')).encode()
    (HERE / 'fields.json.xz').write_bytes(lzma.compress(text, preset=9))
    np.savez_compressed(HERE / 'fields.npz', **{str(i): made for i, made in outputs.values()})


def main(origin: str) -> None:
    versions, cases = load()
    made = importlib.import_module(f'tests.golden.make_fields_{origin}').cases()
    for case in made:
        print(case.model, case.file, case.field, case.value, case.error[:90], flush=True)
    versions[origin] = {name: importlib.metadata.version(name) for name in LIBRARIES}
    save(versions, [c for c in cases if c['origin'] != origin] + [asdict(case) for case in made])


if __name__ == '__main__':
    main(sys.argv[1])
