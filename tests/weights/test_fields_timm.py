"""Each field of timm's config.json, set to other legal values: the same logits, or refused.

The reference values are those of timm (tests/golden/make_fields_timm.py).
"""

import json
import lzma
import re
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtrain.config import Config, base
from jaxtrain.config.keys import PREPROCESSING
from jaxtrain.data.images.transforms import Resize, image_settings
from jaxtrain.errors import UserError
from jaxtrain.params.partition import from_paths
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.matching import of_leftovers, target_model
from jaxtrain.weights.origins import timm
from jaxtrain.weights.origins.names import Match, their_shape, to_ours
from jaxtrain.weights.schemas import timm as schema
from tests.golden.make_fields_timm import image, sampled
from tests.golden.make_weights import inputs
from tests.weights.test_parity import made, program, shapes_of

GOLDEN = Path(__file__).parents[1] / 'golden'
CONTENT = json.loads(lzma.decompress((GOLDEN / 'fields_timm.json.xz').read_bytes()))
# Without cases that timm itself refuses.
CASES = [case for case in CONTENT['cases'] if 'error' not in case]
TINY = {'name': 'vit', 'patch': (16, 16), 'width': 48, 'depth': 2, 'heads': 3, 'mlp': 96}
REFUSED, COMPUTED, WITHOUT_EFFECT = 'refused', 'computed', 'without effect'


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(timm.MODELS, 'tiny', TINY)


def name_of(case) -> str:
    field, value = case['field'] or 'default', case['value']
    family = 'resnet' if 'resnet' in case['architecture'] else 'vit'
    return f'{family}-{case["place"]}-{field}-{json.dumps(value)}'.replace(' ', '')


def match_of(case, folder: Path, model: str = 'tiny') -> Match | None:
    """Return the match of a case, None if it is refused."""
    (folder / 'config.json').write_text(json.dumps(case['config']))
    shapes = case['arrays']
    if isinstance(shapes, int):
        shapes = CONTENT['arrays'][shapes]
    arrays = {key: jax.ShapeDtypeStruct(tuple(s), np.float32) for key, s in shapes.items()}
    archive = Archive(folder, (folder / 'model.safetensors',), 'safetensors', arrays, None)
    try:
        match = timm.match(archive, model)
    except UserError as error:
        assert '\n' not in str(error)
        return None
    return None if any(of_leftovers(archive, match)) else match


def logits(match: Match, shape) -> np.ndarray:
    """Return the float64 logits of our model with the weights of a case."""
    shapes = shapes_of(match)
    model, (params, state) = target_model(match)
    with jax.enable_x64(True):
        leaves = {}
        for entry in match.rows:
            leaves |= to_ours(entry, made(entry.theirs, their_shape(entry, shapes)), shapes)
        params, state = from_paths(leaves, params, state)
        x = inputs(tuple(shape))
        return np.asarray(program(model, None)({'params': params, **state}, x))


def error(match: Match, case) -> float:
    wanted = np.array(case['outputs'])
    if match.fields['name'] == 'vit':  # a ResNet takes any size
        assert match.inputs.shape == tuple(case['shape'])
    return float(np.abs(logits(match, case['shape']) - wanted).max() / np.abs(wanted).max())


def model_for(case) -> str:
    return 'resnet18' if case['architecture'] == 'resnet18' else 'tiny'


def default_of(case):
    return next(c for c in CASES if c['architecture'] == case['architecture'] and not c['field'])


def network(match: Match) -> tuple:
    """What the logits depend on; layer_scale is an initial value."""
    fields = {k: v for k, v in match.fields.items() if k != 'layer_scale'}
    return fields, match.outputs, match.inputs, match.rows


ARGUMENTS = [case for case in CASES if case['place'] == 'model_args']


@pytest.mark.parametrize('case', ARGUMENTS, ids=name_of)
def test_an_argument_is_computed_or_refused_or_has_no_effect(case, tmp_path):
    match = match_of(case, tmp_path, model_for(case))
    if match is None:
        assert case['field'], 'the default is refused'
        return
    default = default_of(case)
    same = case['outputs'] == default['outputs'] and case['shape'] == default['shape']
    usual = match_of(default, tmp_path, model_for(case))
    assert usual is not None
    if network(match) == network(usual):
        assert same, 'the outputs differ, but not our model'


# The logits of arguments that change our model. A field of each kind is among the fast tests.
FAST = ('default', 'num_heads-12', 'global_pool-"max"', 'img_size-[96,16]')
COMPUTING = [
    case
    for case in ARGUMENTS
    if case['field'] in ('', 'img_size', 'in_chans', 'num_classes', 'global_pool', 'num_heads',
                         'class_token', 'no_embed_class', 'reg_tokens', 'fc_norm', 'act_layer',
                         'init_values')
]  # fmt: skip


@pytest.mark.parametrize(
    'case',
    [
        pytest.param(
            case,
            id=name_of(case),
            marks=()
            if 'vit' in name_of(case) and name_of(case).endswith(FAST + ('default-null',))
            else pytest.mark.slow,
        )
        for case in COMPUTING
    ],
)
def test_logits_equal_those_of_timm(case, tmp_path):
    match = match_of(case, tmp_path, model_for(case))
    if match is None:
        pytest.skip('refused')
    if not match.outputs:
        match = Match(match.fields, 48, match.inputs, match.rows)
        pytest.skip('without a head')
    assert error(match, case) <= 1e-12


PRETRAINED = [case for case in CASES if case['place'] == 'pretrained_cfg']


@pytest.mark.parametrize('case', PRETRAINED, ids=name_of)
def test_a_field_of_pretrained_cfg(case, tmp_path):
    """Images are preprocessed as by timm, or the file is refused."""
    case = {**case, 'arrays': default_of(case)['arrays']}
    match = match_of(case, tmp_path)
    if match is None:
        assert case['field'], 'the default is refused'
        return
    if 'pixels' not in case:
        usual = match_of({**case, 'config': CASES[0]['config']}, tmp_path)
        assert network(match) == network(usual)
        assert match.preprocessing == usual.preprocessing
        return
    wanted = np.array(case['pixels'])
    if case['field'] == 'crop_pct' and case['value'] == 0.875:
        assert 'rounded down' in ' '.join(match.assumed)  # a side differs by one pixel
    else:
        np.testing.assert_allclose(sampled(preprocessed(match)), wanted, atol=2e-5)


def preprocessed(match: Match) -> np.ndarray:
    """Return the image of the golden script as a run with these weights sees it."""
    c = base()
    for key, value in {**PREPROCESSING, **match.preprocessing}.items():
        c.data[key] = value
    settings = image_settings(Config(c.to_dict()).data, c.data.test)
    pixels = Resize(match.inputs.shape[:2], settings.fit)(image(), None)
    mean, std = (np.array(match.preprocessing[key]) for key in ('mean', 'std'))
    return (pixels / match.preprocessing['scale'] - mean) / std


# Architectures.


def test_only_plain_resnets_are_taken():
    """Others have blurred strides, other activations or other pooling under the same keys."""
    accepted = {name for name in CONTENT['architectures']['resnet'] if known(name, 'resnet')}
    assert accepted == {name for name, same in CONTENT['architectures']['resnet'].items() if same}


def known(name: str, family: str) -> bool:
    from jaxtrain.weights.origins.timm_config import _architecture

    return _architecture(name, family) is not None


def test_vits_with_other_keys_are_not_taken():
    others = [name for name, found in CONTENT['architectures']['vit'].items() if not found]
    assert len(others) > 50
    assert not [name for name in others if known(name, 'vit')]


KNOWN = [n for n, found in CONTENT['architectures']['vit'].items() if found and known(n, 'vit')]


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.slow] * ('patch16' not in n)) for n in KNOWN]
)
def test_what_the_name_of_an_architecture_stands_for(name, tmp_path, monkeypatch):
    """config.json states few arguments; the others are those of the architecture in timm."""
    stored = CONTENT['architectures']['vit'][name]
    patch = stored['patch']
    shapes = {
        key: shape
        for one, shape in stored['shapes'].items()
        for key in {one, one.replace('blocks.0.', 'blocks.1.')}
    }
    monkeypatch.setitem(timm.MODELS, 'tiny', {**TINY, 'patch': (patch, patch)})
    match = match_of({'config': stored['config'], 'arrays': shapes}, tmp_path)
    assert match is not None
    case = {'outputs': stored['outputs'], 'shape': (2 * patch, 3 * patch, 3)}
    assert error(match, case) <= 1e-12


def table() -> list[str]:
    """Return the lines of fields_timm.tsv."""
    import tempfile

    rows: dict[tuple[str, str], set[str]] = defaultdict(set)
    timm.MODELS['tiny'] = TINY
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if not case['field']:
                continue
            full = {**case, 'arrays': case.get('arrays', default_of(case)['arrays'])}
            match = match_of(full, Path(folder), model_for(case))
            usual = match_of(default_of(case), Path(folder), model_for(case))
            if match is None:
                outcome = REFUSED
            else:
                alike = network(match) == network(usual)
                alike = alike and match.preprocessing == usual.preprocessing
                alike = alike and match.classes == usual.classes
                outcome = WITHOUT_EFFECT if alike else COMPUTED
            family = 'resnet ' if 'resnet' in case['architecture'] else ''
            rows[f'{family}{case["place"]}', case['field']].add(
                f'{outcome} ({json.dumps(case["value"])})'
            )
    return [f'timm\tconfig.json\t{p}.{f}\t{"; ".join(sorted(o))}' for (p, f), o in rows.items()]


@pytest.mark.slow
def test_the_table_of_outcomes_is_current():
    """Remake it with tests.weights.test_fields_timm.table after a change."""
    written = (GOLDEN / 'fields_timm.tsv').read_text().splitlines()
    assert written == table()
    assert all(re.search(f'{REFUSED}|{COMPUTED}|{WITHOUT_EFFECT}', line) for line in written)


def test_every_argument_of_timm_has_a_rule():
    """A field that the schema lacks is refused as unknown, which is right but not helpful."""
    schemas = {'vit': schema.VIT, 'resnet': schema.RESNET}
    for case in ARGUMENTS:
        family = 'resnet' if 'resnet' in case['architecture'] else 'vit'
        assert not case['field'] or case['field'] in schemas[family], case['field']
    for case in PRETRAINED:
        assert not case['field'] or case['field'] in schema.PRETRAINED, case['field']
