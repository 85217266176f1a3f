"""Every name map and model against the reference implementation: logits, keys and shapes."""

import dataclasses
import json
import re
import sys
from functools import cache, lru_cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.errors import FlaxError

from jaxtrain.config import Config, base
from jaxtrain.models import make_model, vgg
from jaxtrain.params.partition import by_path, from_paths
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.matching import of_leftovers, target_model
from jaxtrain.weights.origins import augreg, keras
from jaxtrain.weights.origins.names import Match, Part, Row, row, their_shape, to_ours, to_theirs
from jaxtrain.weights.origins.origins import ORIGINS
from tests.golden.make_weights import CASES, WHOLE, family, inputs, unfolded, weight
from tests.support.inputs import abstract_variables, match_of

GOLDEN = Path(__file__).parents[1] / 'golden'
KEYS = {
    part: {name: unfolded(found) for name, found in every.items()}
    for part, every in json.loads((GOLDEN / 'weights.json').read_text()).items()
}
LOGITS = np.load(GOLDEN / 'weights.npz')
GATES = {'float64': 1e-12, 'float32': 1e-5}
WRONG = 1e-10  # errors above this are not due to rounding
# One case for each map that can also export.
MAPS = [*{family(name): name for name in CASES if not name.startswith('keras')}.values()]


# Slow cases: a smaller case has the same map, or only the image size differs.
LARGE = [n for n in CASES if re.search('resnet34|resnet50', n) and n != 'keras_resnet50_even']


def slower(names, slow) -> list:
    """Return the names as parameters, with those in `slow` marked."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in names]


# Making arrays takes half of the time of a large model; the next test uses them again.
made = lru_cache(300)(weight)


def module_of(origin: str, model: str):
    return next(
        module
        for module in ORIGINS[origin]
        if model in {fields['name'] for fields in module.MODELS.values()}
    )


def keys_of(name: str) -> dict[str, list[int]]:
    return KEYS['cases'][family(name)]


def table(name: str) -> tuple[Row, ...]:
    origin, fields, outputs, _, naming = CASES[name]
    if origin == 'keras':
        return keras_table(fields, name)
    return module_of(origin, fields['name']).rows(fields, outputs, **naming)


def keras_table(fields: dict, name: str) -> tuple[Row, ...]:
    """Return the rows of Keras's map, whose arrays are named layer/array in the golden file."""
    layers: dict[str, list[str]] = {}
    for key in keys_of(name):
        layers.setdefault(key.split('/')[0], []).append(key)
    rows = []
    for source, target, names in keras.resnet_layers(fields['depth'], layers):
        rows += [
            keras.array(k, f'{target}/{n}') for k, n in zip(layers[source], names, strict=True)
        ]
    return tuple(rows)


def model_of(case, fields: dict):
    c = base()
    c.model = fields
    return make_model(Config(c.to_dict()).model, case.outputs or 1)


def leaves_of(name: str, dtype: str = 'float64', rows=None, **changes):
    """Return (our model, its leaves by path, its variables) with the weights of a case.

    Rows and changes replace the map and fields of the case.
    """
    case = CASES[name]
    right, model = (model_of(case, fields) for fields in (case.fields, case.fields | changes))
    with jax.enable_x64(False):  # traced once, for the maps and for models that are wrong as well
        params, state = abstract_variables(right, case.shape)
    shapes = {path: leaf.shape for path, leaf in by_path(params, state).items()}
    leaves = {}
    for entry in rows or table(name):
        array = made(entry.theirs, their_shape(entry, shapes)).astype(dtype)
        leaves |= to_ours(entry, array, shapes)
    # Cases without outputs compare no head.
    head = {p: np.zeros(s) for p, s in shapes.items() if not case.outputs and p[:5] == 'head/'}
    params, state = from_paths({**leaves, **head}, params, state)
    return model, leaves, {'params': params, **state}


@cache
def program(model, method: str | None):
    """Compile a model once, for the right map and the wrong ones."""
    return jax.jit(partial(model.apply, train=False, method=method))


def apply(name: str, model, variables, dtype: str = 'float64') -> np.ndarray:
    """Return our logits of a case."""
    x = inputs(CASES[name].shape)
    x = x.astype(dtype if x.ndim == 4 else 'int32')
    method = None if CASES[name].outputs else 'embed'
    return np.asarray(program(model, method)(variables, x))


def error(name: str, dtype: str = 'float64', rows=None, **changes) -> float:
    """Return max|ours - reference| / max|reference| of a case."""
    with jax.enable_x64(dtype == 'float64'):
        model, _, variables = leaves_of(name, dtype, rows, **changes)
        out = apply(name, model, variables, dtype)
    assert out.dtype == dtype
    wanted = LOGITS[name]
    return float(np.abs(out - wanted).max() / np.abs(wanted).max())


def shapes_of(match: Match) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in by_path(*target_model(match)[1]).items()}


@pytest.mark.parametrize('name', slower(CASES, LARGE))
def test_logits_equal_those_of_the_reference(name):
    assert error(name) <= GATES['float64']


# One case per model, in the precision of training; the maps are the same.
FLOAT32 = (
    'torchvision_resnet18_even', 'torchvision_resnet50_even', 'torchvision_vgg11_even', 'timm_vit',
    'timm_dinov2', 'huggingface_gpt2_even', 'huggingface_bert_even',
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', FLOAT32)
def test_logits_in_float32(name):
    assert error(name, 'float32') <= GATES['float32']


@pytest.mark.parametrize('name', MAPS)
def test_a_map_names_every_array(name):
    """It names nothing else: the reference strictly loads what it would write."""
    _, fields, outputs, shape, _ = CASES[name]
    match = match_of(fields, outputs, shape, table(name))
    shapes = shapes_of(match)
    keys = {row.theirs: list(their_shape(row, shapes)) for row in match.rows}
    reference = {k: v for k, v in keys_of(name).items() if not spare(k, fields)}
    assert keys == reference


def spare(key: str, fields: dict) -> bool:
    """Return whether an array of the reference is redundant in our model."""
    tied = key == 'lm_head.weight' and fields.get('tied', True)
    return tied or key.endswith('embeddings.mask_token')


@pytest.mark.parametrize('name', MAPS)
def test_conversion_can_be_inverted(name):
    _, fields, outputs, shape, _ = CASES[name]
    match = match_of(fields, outputs, shape, table(name))
    shapes = shapes_of(match)
    for entry in match.rows:
        array = made(entry.theirs, their_shape(entry, shapes))
        np.testing.assert_array_equal(to_theirs(entry, to_ours(entry, array, shapes)), array)


def archive_of(keys: dict[str, list[int]]) -> Archive:
    """Return an archive with keys and shapes, without a folder."""
    arrays = {
        key: jax.ShapeDtypeStruct(tuple(shape), np.dtype('i8' if 'num_batches' in key else 'f4'))
        for key, shape in keys.items()
    }
    return Archive(Path('file'), (Path('nowhere/file'),), 'safetensors', arrays, None)


DEEP = [n for n in WHOLE if re.search('resnet101|resnet152|vit_l|vit_large|gpt2_medium', n)]


@pytest.mark.parametrize('name', slower(WHOLE, DEEP))
def test_the_whole_model_is_read_from_its_keys(name):
    """Keys and shapes alone determine it; no array is missing or left over."""
    origin, model, outputs = WHOLE[name]
    archive = archive_of(KEYS['whole'][name])
    module = next(m for m in ORIGINS[origin] if model in m.MODELS)
    match = module.match(archive, model)
    assert match.outputs == outputs
    assert of_leftovers(archive, match) == ([], [])
    if '384' in name:
        assert match.inputs.shape == (384, 384, 3)
    elif name == 'huggingface_gpt2':
        assert match.inputs.shape == (1024,)


def renamed(keys: dict, *changes: tuple[str, str]) -> dict[str, list[int]]:
    for old, new in changes:
        keys = {re.sub(old, new, key): shape for key, shape in keys.items()}
    return keys


# Older files: (whole model, renamings, additional keys).
OLD = {
    'torchvision before 0.12': (
        'torchvision_vit_b_16',
        (('mlp.0', 'mlp.linear_1'), ('mlp.3', 'mlp.linear_2')),
        {},
    ),
    'GPT-2 as OpenAI named it, with its masks': (
        'huggingface_gpt2',
        (('^transformer.', ''),),
        {'h.3.attn.bias': [1, 1, 1024, 1024], 'h.3.attn.masked_bias': []},
    ),
    'BERT with gamma and beta, and its heads of pretraining': (
        'huggingface_bert',
        ((r'LayerNorm\.weight', 'LayerNorm.gamma'), (r'LayerNorm\.bias', 'LayerNorm.beta')),
        {'cls.predictions.bias': [30522], 'bert.embeddings.position_ids': [1, 512]},
    ),
}


@pytest.mark.parametrize('what', OLD)
def test_older_names_are_known(what):
    name, changes, extra = OLD[what]
    origin, model, outputs = WHOLE[name]
    archive = archive_of({**renamed(KEYS['whole'][name], *changes), **extra})
    match = next(m for m in ORIGINS[origin] if model in m.MODELS).match(archive, model)
    assert match.outputs == outputs
    assert of_leftovers(archive, match) == ([], [])


AUGREG = {
    'by place': ('', augreg.PLACES),
    'by kind': ('', augreg.KINDS),
    'by kind, under params': ('params/', augreg.KINDS),
}


@pytest.mark.parametrize('what', AUGREG)
def test_all_naming_schemes_of_augreg_give_the_same_leaves(what):
    """The tests of logits use the first scheme."""
    prefix, places = AUGREG[what]
    fields = augreg.MODELS['vit_ti16']
    rows = augreg.rows(fields, 10, prefix, places)
    shapes = shapes_of(match_of(fields, 10, (224, 224, 3), rows))
    archive = archive_of({r.theirs: their_shape(r, shapes) for r in rows})
    match = augreg.match(archive, 'vit_ti16')
    assert (match.fields, match.outputs, match.inputs.shape) == (fields, 10, (224, 224, 3))
    assert of_leftovers(archive, match) == ([], [])
    assert {r.theirs: r.parts for r in match.rows} == {r.theirs: r.parts for r in rows}
    assert [r.parts for r in match.rows] == [r.parts for r in augreg.rows(fields, 10)]


# Wrong models: (case, wrong fields).
WRONG_FIELDS = {
    'SAME padding at an even size': ('torchvision_resnet18_even', {'padding': 'SAME'}),
    'SAME padding off multiples of 32': ('torchvision_resnet34_even', {'padding': 'SAME'}),
    'SAME padding in Keras': ('keras_resnet50_even', {'padding': 'SAME'}),
    'stride on the 1x1': ('torchvision_resnet50_even', {'stride': '1x1'}),
    'stride on the 3x3 in Keras': ('keras_resnet50_even', {'stride': '3x3'}),
    'BatchNorm eps of torch for Keras': ('keras_resnet50_even', {'norm_eps': 1e-5}),
    'BatchNorm eps of Keras for torch': ('torchvision_resnet18_odd', {'norm_eps': 1.001e-5}),
    'tanh for erf GELU': ('timm_vit', {'gelu': 'tanh'}),
    'erf for tanh GELU': ('augreg_vit', {'gelu': 'erf'}),
    'erf GELU in GPT-2': ('huggingface_gpt2_odd', {'gelu': 'erf'}),
    'tanh GELU in BERT': ('huggingface_bert_odd', {'gelu': 'tanh'}),
    'LayerNorm eps of timm for Hugging Face': ('huggingface_vit', {'norm_eps': 1e-6}),
    'LayerNorm eps of torch for timm': ('timm_vit', {'norm_eps': 1e-5}),
    'LayerNorm eps of torch for torchvision': ('torchvision_vit', {'norm_eps': 1e-5}),
    'LayerNorm eps of timm in BERT': ('huggingface_bert_odd', {'norm_eps': 1e-6}),
    'LayerNorm eps of timm in GPT-2': ('huggingface_gpt2_odd', {'norm_eps': 1e-6}),
    'norm before the pool': ('timm_vit_mean', {'norm_after_pool': False}),
    'norm after the pool': ('augreg_big_vision_mean', {'norm_after_pool': True}),
    'the class token for the mean': ('timm_vit_mean', {'pool': 'token'}),
    'padding seen in BERT': ('huggingface_bert_odd', {'pad': 96}),
    'padding in the mean': ('huggingface_minilm', {'pad': 96}),
    'the first token for the mean': ('huggingface_minilm', {'pool': 'first'}),
}


@pytest.mark.parametrize(
    'what', slower(WRONG_FIELDS, [w for w, (name, _) in WRONG_FIELDS.items() if 'resnet50' in name])
)
def test_a_wrong_model_fails(what):
    name, changes = WRONG_FIELDS[what]
    assert error(name, **changes) > WRONG


def test_off_224_vgg_needs_its_adaptive_pool(monkeypatch):
    """Without it shapes differ; another resize to 7x7 gives other logits."""
    with pytest.raises(FlaxError):
        error('torchvision_vgg11_odd', pool=0)
    monkeypatch.setattr(sys.modules[__name__], 'program', program.__wrapped__)
    monkeypatch.setattr(
        vgg, 'average_to', lambda x, n: jax.image.resize(x, (2, n, n, x.shape[-1]), 'linear')
    )
    assert error('torchvision_vgg11_odd') > WRONG


def changed(name: str, key: str, change) -> tuple[Row, ...]:
    rows = table(name)
    assert any(r.theirs.endswith(key) for r in rows)
    return tuple(change(r) if r.theirs.endswith(key) else r for r in rows)


def pattern(new: str):
    def change(r: Row) -> Row:
        return dataclasses.replace(
            r, parts=tuple(dataclasses.replace(p, pattern=new) for p in r.parts)
        )

    return change


def reverse(r: Row) -> Row:
    return dataclasses.replace(r, parts=r.parts[::-1])


def flat_order(r: Row) -> Row:
    return row(r.theirs, r.parts[0].path, '(h w c) o -> o (h w c)', h=7, w=7, c=512)


def exchanged(name: str, one: str, other: str) -> tuple[Row, ...]:
    """Return the rows of a case with two arrays of each layer exchanged."""
    rows, names = table(name), {one: other, other: one}
    paths = {part.path for r in rows for part in r.parts}

    def change(part: Part) -> Part:
        path = '/'.join(names.get(word, word) for word in part.path.split('/'))
        return dataclasses.replace(part, path=path if path in paths else part.path)

    result = tuple(dataclasses.replace(r, parts=tuple(map(change, r.parts))) for r in rows)
    assert result != rows
    return result


# Wrong maps: (case, key of the wrong rows, change).
WRONG_ROWS = {
    'VGG: flattened as rows, columns, channels': (
        'torchvision_vgg11_even', 'classifier.0.weight', flat_order
    ),
    'rows for columns in a kernel': (
        'torchvision_resnet18_even', 'conv1.weight', pattern('h w i o -> o i w h')
    ),
    'torchvision: value, key, query': ('torchvision_vit', 'in_proj_weight', reverse),
    'timm: value, key, query': ('timm_vit', 'attn.qkv.weight', reverse),
    'timm: heads last': ('timm_vit', 'attn.qkv.weight', pattern('i h d -> (d h) i')),
    'timm: the class position last': ('timm_vit', 'pos_embed', reverse),
    'timm: dense as it is there': ('timm_vit', 'attn.proj.weight', pattern('h d o -> (h d) o')),
    'GPT-2: value, key, query': ('huggingface_gpt2_odd', 'c_attn.weight', reverse),
    'GPT-2: heads last': ('huggingface_gpt2_odd', 'c_attn.weight', pattern('i h d -> i (d h)')),
    'GPT-2: Conv1D transposed': (
        'huggingface_gpt2_odd', 'attn.c_proj.weight', pattern('h d o -> o (h d)')
    ),
    'BERT: dense as it is there': (
        'huggingface_bert_odd', 'attention.output.dense.weight', pattern('h d o -> (h d) o')
    ),
}  # fmt: skip
# Exchanges: (case, array of ours, another of the same shape).
EXCHANGED = {
    'mean for variance, torch': ('torchvision_resnet18_even', 'mean', 'var'),
    'mean for variance, Keras': ('keras_resnet50_even', 'mean', 'var'),
    'beta before gamma': ('keras_resnet50_even', 'scale', 'bias'),
    'key for query': ('huggingface_vit', 'key', 'query'),
    'key for query, AugReg': ('augreg_vit', 'key', 'query'),
    'one LayerScale for the other': ('huggingface_dinov2', 'scale_1', 'scale_2'),
    'one norm for the other': ('huggingface_bert_odd', 'norm_1', 'norm_2'),
}


@pytest.mark.parametrize('what', WRONG_ROWS)
def test_a_wrong_map_fails(what):
    name, key, change = WRONG_ROWS[what]
    assert error(name, rows=changed(name, key, change)) > WRONG


@pytest.mark.parametrize('what', EXCHANGED)
def test_an_exchange_fails(what):
    name, one, other = EXCHANGED[what]
    result = error(name, rows=exchanged(name, one, other))
    assert not result <= WRONG  # a variance below 0 gives NaN


def test_same_padding_makes_no_difference_at_odd_sizes():
    """Therefore there are also cases of even sizes."""
    assert error('torchvision_resnet18_odd', padding='SAME') <= GATES['float64']
