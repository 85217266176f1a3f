"""Filling of our arrays from a file: piece by piece, checked and converted."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.parallel.mesh import make_mesh, on_mesh
from jaxtrain.params.partition import unflatten
from jaxtrain.weights import fill, restore, stored
from jaxtrain.weights.formats import blocks
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins import timm
from jaxtrain.weights.origins.names import Part, Row, row, their_shape, to_ours
from tests.golden.make_weights import CASES
from tests.support import foreign_files
from tests.support.inputs import match_of
from tests.weights.test_parity import MAPS, shapes_of, table


def in_pieces(array: np.ndarray, rows: int) -> Archive:
    """Return an archive of one array, read this many rows at a time."""

    def read(_):
        for first in range(0, len(array), rows):
            piece = array[first : first + rows].copy()
            yield piece
            piece[...] = np.nan  # a piece is valid until the next one

    leaf = jax.ShapeDtypeStruct(array.shape, array.dtype)
    return Archive(Path('somewhere'), (), 'npz', {'a': leaf}, read)


def filled(entry: Row, shapes, array: np.ndarray, rows: int, paths=None) -> dict[str, np.ndarray]:
    out = {p.path: np.full(shapes[p.path], np.nan, 'f4') for p in entry.parts}
    out = {path: out[path] for path in paths or out}
    fill.fill(in_pieces(array, rows), entry, shapes, out)
    return out


@pytest.mark.parametrize('name', MAPS)
def test_every_map_takes_arrays_in_pieces(name):
    """Pieces of any length work, for maps that transpose, split or join arrays."""
    _, fields, outputs, shape, _ = CASES[name]
    shapes = shapes_of(match_of(fields, outputs, shape, table(name)))
    for entry in table(name):
        array = foreign_files.made(entry.theirs, their_shape(entry, shapes))
        expected = to_ours(entry, array, shapes)
        for rows in (5, 10**6):
            for path, result in filled(entry, shapes, array, rows).items():
                np.testing.assert_array_equal(result, expected[path], f'{entry.theirs}, {rows}')


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('rows', [1, 2, 3, 4, 100])
def test_parts_that_end_within_a_piece(axis, rows):
    """A part that is not requested does not affect the others."""
    parts = tuple(
        Part(name, 'i h d -> (h d) i' if axis == 0 else 'i h d -> i (h d)') for name in 'qk'
    )
    entry = Row('a', parts, axis)
    shapes = {'q': (5, 2, 3), 'k': (5, 1, 3)}
    array = np.arange(45, dtype='f4').reshape((9, 5) if axis == 0 else (5, 9))
    expected = to_ours(entry, array, shapes)
    for paths in (('q', 'k'), ('q',), ('k',)):
        for path, result in filled(entry, shapes, array, rows, paths).items():
            np.testing.assert_array_equal(result, expected[path])


def test_pattern_that_needs_a_copy_is_detected():
    """An axis joined from two nonadjacent ones is a copy, and filling it would have no effect."""
    entry = row('a', 'x', '(h w c) o -> (c h w) o', h=2, w=2, c=3)
    with pytest.raises(AssertionError, match='would be lost'):
        filled(entry, {'x': (12, 5)}, np.ones((12, 5), 'f4'), 3)


@pytest.mark.parametrize('at', [0, 1234, -1])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_one_nonfinite_number(value, at):
    array = np.ones(5000, 'f4')
    array[at] = value
    with pytest.raises(UserError, match=r'somewhere: a holds NaN or Inf \(as float32\)'):
        filled(row('a', 'x', 'n -> n'), {'x': (5000,)}, array, 1000)


def test_a_number_too_large_for_float32():
    array = np.array([1.0, 1e39])
    with pytest.raises(UserError, match=r'a holds NaN or Inf \(as float32\)'):
        filled(row('a', 'x', 'n -> n'), {'x': (2,)}, array, 1)


def test_large_numbers_are_accepted():
    """Their squares are not finite."""
    array = np.array([3e38, -3e38], 'f4')
    result = filled(row('a', 'x', 'n -> n'), {'x': (2,)}, array, 2)
    np.testing.assert_array_equal(result['x'], array)


@pytest.mark.parametrize('dtype', ['f8', 'f2', jnp.bfloat16])
def test_other_floats_become_float32(dtype):
    array = np.array([1.5, -2.25, 0.0]).astype(dtype)
    result = filled(row('a', 'x', 'n -> n'), {'x': (3,)}, array, 2)
    assert result['x'].dtype == np.float32 and result['x'].tolist() == [1.5, -2.25, 0.0]


@pytest.mark.parametrize('shape', [(3, 4), (), (0, 2)])
def test_unknown_key_can_be_loaded_by_a_rule(shape, tmp_path, monkeypatch):
    """It is read unchanged."""
    monkeypatch.setattr(blocks, 'BYTES', 20)
    arrays = foreign_files.arrays(timm, 'vit_ti16', 0, (32, 32, 3))
    extra = np.arange(1, 1 + np.prod(shape, dtype=int), dtype='f4').reshape(shape)
    file = foreign_files.write(tmp_path / 'f.safetensors', {**arrays, 'my.extra': extra})
    weights = stored.of_file('timm', file, 'vit_ti16')
    target = on_mesh(
        unflatten({'backbone/x': jax.ShapeDtypeStruct(shape, np.float32)}), make_mesh()
    )
    rules = (('backbone/x', 'load my.extra'), ('.*', 'drop'))
    plan = restore.make_plan(weights, (target, {}), rules)
    np.testing.assert_array_equal(restore.read(plan, (target, {}))['backbone/x'], extra)
