"""The command export: the files it writes, and its messages."""

import json
from functools import cache

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxtrain.errors import UserError
from jaxtrain.inference import export_weights as export_module
from jaxtrain.inference.export_weights import export_weights
from jaxtrain.models import with_defaults
from jaxtrain.params.partition import by_path
from jaxtrain.weights.import_weights import import_weights
from jaxtrain.weights.matching import target_model
from jaxtrain.weights.origins import augreg, huggingface_vit
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
    """AugReg uses the tanh GELU, where timm's ViTs use the exact one: config.json states it.

    It states no eps of timm's, and nothing states anything in an npz.
    """
    target, workdir = tmp_path / 'm.safetensors', runs('big_vision')[1]
    message = export_weights(workdir, 'last', 'timm', str(target))
    assert message.endswith('named as in timm, with config.json')
    args = json.loads((tmp_path / 'config.json').read_text())['model_args']
    assert (args['act_layer'], args['num_heads'], args['no_embed_class']) == ('gelu_tanh', 3, True)
    assert args['img_size'] == [32, 32]
    # Repeating it is no conflict, but a config.json of other weights is.
    export_weights(workdir, 'last', 'timm', str(target))
    (tmp_path / 'config.json').write_text('{"architecture": "resnet50"}')
    with pytest.raises(UserError, match='describes other weights'):
        export_weights(workdir, 'last', 'timm', str(target))


def test_differences_are_those_of_the_family():
    """DINOv2's eps of 1e-6 is no excuse for a ViT, which has 1e-12 in transformers."""
    fields = with_defaults({**huggingface_vit.MODELS['vit_ti16'], 'norm_eps': 1e-6})
    assert 'norm_eps=1e-06' in export_module._otherwise(huggingface_vit, fields, ())
    fields = with_defaults(huggingface_vit.MODELS['vit_ti16'])
    assert not export_module._otherwise(huggingface_vit, fields, ())


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
