"""Replays the cases of tests/golden/make_fields.py: what our import makes of each field."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.config import Config, base
from jaxtrain.data.images.transforms import image_settings, make_transforms
from jaxtrain.data.tokenizer import open_tokenizer
from jaxtrain.errors import UserError
from jaxtrain.params.partition import by_path, from_paths
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.matching import find_faults, leaves_of, shapes_of, target_model
from jaxtrain.weights.origins.names import Match, to_ours
from jaxtrain.weights.schemas.schema import Given
from tests.golden.make_weights import inputs, weight

COMPUTED, NO_EFFECT, REFUSED = 'computed', 'without effect', 'refused'
# A size of images other than that of the positions: the import keeps the latter, and says so.
SAID = 'left out, and said'
made = functools.lru_cache(500)(weight)


def archive_of(case: Mapping[str, Any], folder: Path, given: Given | None = None) -> Archive:
    """Write the files of a case, and return its weights, which are made from their keys."""
    for name, content in case['files'].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    arrays = {
        key: jax.ShapeDtypeStruct(tuple(shape), np.dtype('f4'))
        for key, shape in case['arrays'].items()
    }
    files = (folder / 'model.safetensors',)

    def read(key: str):
        yield made(key, arrays[key].shape)

    return Archive(folder, files, 'safetensors', arrays, read, given or Given())


def match_of(case: Mapping[str, Any], module: Any, folder: Path) -> Match:
    """Match a case as an import does. UserError if it is refused."""
    archive = archive_of(case, folder)
    match = module.match(archive, case['model'])
    shapes = _once('shapes', match, lambda: shapes_of(match))
    faults = find_faults(archive, match, shapes)
    spare = [] if faults else [k for k in leaves_of(archive, match, shapes)[0] if k not in shapes]
    if faults or spare:
        raise UserError(f'{archive.path}: {len(faults)} arrays do not fit, and {spare} are left')
    return match


def outputs_of(case: Mapping[str, Any], match: Match, folder: Path) -> np.ndarray:
    """Compute our outputs of a case; the arrays of a network are float64."""
    if isinstance(case['inputs'], dict):
        return pixels(case['inputs']['pixels'], match)
    length = (match.preprocessing or {}).get('length')
    what = f'{case["inputs"]} {length} {[row.theirs for row in match.rows]}'

    def compute() -> np.ndarray:
        with jax.enable_x64(True):
            return _outputs(case, match, folder)

    return _once(what, match, compute)


_RESULTS: dict[str, Any] = {}


def _once(what: str, match: Match, compute: Callable[[], Any]) -> Any:
    """Compute once what only depends on the model of a match; most fields have no effect on it."""
    key = f'{what} {sorted(match.fields.items())} {match.outputs} {match.inputs}'
    if key not in _RESULTS:
        _RESULTS[key] = compute()
    return _RESULTS[key]


def _outputs(case: Mapping[str, Any], match: Match, folder: Path) -> np.ndarray:
    with jax.enable_x64(False):
        model, abstract = target_model(match)
        shapes = shapes_of(match)
    leaves = {path: np.zeros(leaf.shape) for path, leaf in by_path(*abstract).items()}
    for row in match.rows:
        leaves |= to_ours(row, made(row.theirs, tuple(case['arrays'][row.theirs])), shapes)
    params, state = from_paths(leaves, *abstract)
    variables, given = {'params': params, **state}, case['inputs']
    if isinstance(given[0], str):
        tokenizer = open_tokenizer(str(folder / 'tokenizer.json'))
        assert match.preprocessing is not None
        tokens, _ = tokenizer.encode(given, match.preprocessing['length'])
        return np.asarray(model.apply(variables, tokens, method='embed'))
    x = np.asarray(given, np.int32) if isinstance(given[0], list) else inputs(tuple(given))
    return np.asarray(model.apply(variables, x, train=False))


def pixels(shape: list[int], match: Match) -> np.ndarray:
    """Preprocess an image as evaluation does, with the settings of a match."""
    c = base()
    for name, value in (match.preprocessing or {}).items():
        c.data[name] = value
    c.data.crop_rounding = c.data.crop_rounding or 'nearest'
    cfg = Config(c.to_dict()).data
    image = np.random.RandomState(0).randint(0, 256, (*shape, 3)).astype(np.uint8)
    transforms = make_transforms(image_settings(cfg, 'val'), (*cfg.image_size, 3))
    return (transforms(image)[None] / cfg.scale - np.asarray(cfg.mean)) / np.asarray(cfg.std)


def outcome(case: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Return what the reference does with a field: it computes, or its outputs stay as they are.

    Args:
      case: the case, whose reference raised no error.
      first: the first case of the same model, in which no field is changed.
    """
    same = case['outputs'].shape == first['outputs'].shape
    same = same and np.abs(case['outputs'] - first['outputs']).max() < 1e-13
    return NO_EFFECT if same else COMPUTED
