"""Arrays on their way from a file: piece by piece into ours, checked, converted, under any name."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.parallel.mesh import make_mesh, on_mesh
from jaxtrain.params.partition import unflatten
from jaxtrain.weights import restore, stored
from jaxtrain.weights.formats import blocks
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins import timm
from jaxtrain.weights.origins.names import Part, Row, row, their_shape, to_ours
from tests.golden.make_weights import CASES
from tests.support import foreign_files
from tests.support.inputs import match_of
from tests.weights.test_parity import MAPS, shapes_of, table


def in_pieces(array: np.ndarray, rows: int) -> Archive:
    """An archive of one array that comes so many rows at a time, in the same buffer."""

    def read(_):
        for first in range(0, len(array), rows):
            piece = array[first : first + rows].copy()
            yield piece
            piece[...] = np.nan  # only valid until the next

    leaf = jax.ShapeDtypeStruct(array.shape, array.dtype)
    return Archive(Path('somewhere'), (), 'npz', {'a': leaf}, read)


def filled(found: Row, shapes, array: np.ndarray, rows: int, paths=None) -> dict[str, np.ndarray]:
    out = {p.path: np.full(shapes[p.path], np.nan, 'f4') for p in found.parts}
    out = {path: out[path] for path in paths or out}
    stored.fill(in_pieces(array, rows), found, shapes, out)
    return out


@pytest.mark.parametrize('name', MAPS)
def test_every_map_takes_arrays_in_pieces(name):
    """Of any length, whatever has to be turned, taken apart or joined."""
    _, fields, outputs, shape, _ = CASES[name]
    shapes = shapes_of(match_of(fields, outputs, shape, table(name)))
    for found in table(name):
        array = foreign_files.made(found.theirs, their_shape(found, shapes))
        expected = to_ours(found, array, shapes)
        for rows in (5, 10**6):
            for path, ours in filled(found, shapes, array, rows).items():
                np.testing.assert_array_equal(ours, expected[path], f'{found.theirs}, {rows}')


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('rows', [1, 2, 3, 4, 100])
def test_parts_that_end_within_a_piece(axis, rows):
    """Each alone, too: that a part is not wanted changes nothing for the others."""
    parts = tuple(
        Part(name, 'i h d -> (h d) i' if axis == 0 else 'i h d -> i (h d)') for name in 'qk'
    )
    found = Row('a', parts, axis)
    shapes = {'q': (5, 2, 3), 'k': (5, 1, 3)}
    array = np.arange(45, dtype='f4').reshape((9, 5) if axis == 0 else (5, 9))
    expected = to_ours(found, array, shapes)
    for paths in (('q', 'k'), ('q',), ('k',)):
        for path, ours in filled(found, shapes, array, rows, paths).items():
            np.testing.assert_array_equal(ours, expected[path])


def test_what_no_view_can_hold_is_noticed():
    """An axis joined of two that do not lie side by side would be filled in vain."""
    found = row('a', 'x', '(h w c) o -> (c h w) o', h=2, w=2, c=3)
    with pytest.raises(AssertionError, match='would be lost'):
        filled(found, {'x': (12, 5)}, np.ones((12, 5), 'f4'), 3)


@pytest.mark.parametrize('at', [0, 1234, -1])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_one_number_that_is_none(value, at):
    array = np.ones(5000, 'f4')
    array[at] = value
    with pytest.raises(UserError, match=r'somewhere: a holds NaN or Inf \(as float32\)'):
        filled(row('a', 'x', 'n -> n'), {'x': (5000,)}, array, 1000)


def test_a_number_too_large_for_float32():
    array = np.array([1.0, 1e39])
    with pytest.raises(UserError, match=r'a holds NaN or Inf \(as float32\)'):
        filled(row('a', 'x', 'n -> n'), {'x': (2,)}, array, 1)


def test_large_numbers_are_numbers():
    """Though their squares are not."""
    array = np.array([3e38, -3e38], 'f4')
    found = filled(row('a', 'x', 'n -> n'), {'x': (2,)}, array, 2)
    np.testing.assert_array_equal(found['x'], array)


@pytest.mark.parametrize('dtype', ['f8', 'f2', jnp.bfloat16])
def test_other_floats_become_float32(dtype):
    array = np.array([1.5, -2.25, 0.0]).astype(dtype)
    found = filled(row('a', 'x', 'n -> n'), {'x': (3,)}, array, 2)
    assert found['x'].dtype == np.float32 and found['x'].tolist() == [1.5, -2.25, 0.0]


@pytest.mark.parametrize('shape', [(3, 4), (), (0, 2)])
def test_a_key_that_the_map_does_not_know_under_its_own_name(shape, tmp_path, monkeypatch):
    """A rule can take it; it is read as it lies."""
    monkeypatch.setattr(blocks, 'BYTES', 20)
    arrays = foreign_files.arrays(timm, 'vit_ti16', 0, (32, 32, 3))
    extra = np.arange(1, 1 + np.prod(shape, dtype=int), dtype='f4').reshape(shape)
    file = foreign_files.write(tmp_path / 'f.safetensors', {**arrays, 'my.extra': extra})
    weights = stored.of_file('timm', file, 'vit_ti16')
    target = on_mesh(
        unflatten({'backbone/x': jax.ShapeDtypeStruct(shape, np.float32)}), make_mesh()
    )
    rules = (('backbone/x', 'load my.extra'), ('.*', 'drop'))
    plan = restore.make_plan(weights, target, {}, rules)
    np.testing.assert_array_equal(restore.read(plan, target, {})['backbone/x'], extra)
