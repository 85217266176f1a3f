"""The command export: the files it writes, and its messages."""

from functools import cache

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxtrain.errors import UserError
from jaxtrain.inference.export_weights import export_weights
from jaxtrain.params.partition import by_path
from jaxtrain.weights.import_weights import import_weights
from jaxtrain.weights.matching import target_model
from jaxtrain.weights.origins import augreg
from jaxtrain.weights.origins.names import their_shape
from jaxtrain.weights.stored import Foreign
from tests.support.foreign_files import made
from tests.support.inputs import match_of

pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')


def arrays(class_position: bool) -> dict[str, np.ndarray]:
    """Return the arrays of a ViT-Ti/16 of AugReg or big_vision, for 32x32 images, four classes."""
    fields = {**augreg.MODELS['vit_ti16'], 'class_position': class_position}
    match = match_of(fields, 4, (32, 32, 3), augreg.rows(fields, 4))
    shapes = {p: leaf.shape for p, leaf in by_path(*target_model(match)[1]).items()}
    return {row.theirs: made(row.theirs, their_shape(row, shapes)) for row in match.rows}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Return a function naming -> (arrays, a run directory with them)."""

    @cache
    def run(naming: str) -> tuple[dict[str, np.ndarray], str]:
        folder = tmp_path_factory.mktemp(naming)
        weights = arrays(class_position=naming == 'augreg')
        np.savez(folder / 'vit.npz', **weights)
        import_weights(str(folder / 'vit.npz'), Foreign('augreg', 'vit_ti16'), str(folder / 'run'))
        return weights, str(folder / 'run')

    return run


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
@pytest.mark.parametrize('naming', ['big_vision', pytest.param('augreg', marks=pytest.mark.slow)])
def test_import_and_export_are_inverse(runs, tmp_path, naming, suffix):
    weights, workdir = runs(naming)
    target = tmp_path / f'again{suffix}'
    message = export_weights(workdir, 'last', 'augreg', str(target))
    assert message == f'{len(weights)} arrays of vit in {target}, named as in augreg'
    exported = dict(np.load(target)) if suffix == '.npz' else load_file(target)
    assert set(exported) == set(weights)
    for key, value in weights.items():
        np.testing.assert_array_equal(exported[key], value, key)


def test_fields_that_no_key_shows_are_reported(runs, tmp_path):
    """AugReg uses the tanh GELU, where timm's ViTs use the exact one."""
    target = tmp_path / 'm.safetensors'
    message = export_weights(runs('big_vision')[1], 'last', 'timm', str(target))
    assert message.endswith("in timm; it computes with gelu='tanh', which must be set there too")


@pytest.mark.parametrize(
    ('origin', 'output', 'words'),
    [
        ('augreg', 'vit.pth', '.safetensors or .npz'),
        ('timm', 'vit.npz', '.safetensors;'),
        ('timm', 'vit', '.safetensors;'),
    ],
)
def test_other_suffixes_are_refused(runs, tmp_path, origin, output, words):
    with pytest.raises(UserError) as caught:
        export_weights(runs('big_vision')[1], 'last', origin, str(tmp_path / output))
    text = str(caught.value)
    assert '\n' not in text and words in text and output in text
    assert not list(tmp_path.iterdir())


def test_array_without_a_counterpart_is_reported(runs, tmp_path):
    """In torchvision, the class token of every ViT has a position."""
    with pytest.raises(UserError, match='torchvision has no names for .* choose another --origin'):
        export_weights(
            runs('big_vision')[1], 'last', 'torchvision', str(tmp_path / 'm.safetensors')
        )
    assert not list(tmp_path.iterdir())
