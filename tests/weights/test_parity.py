"""Every origin's map and every model against the reference: logits, keys and shapes."""

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
from jaxtrain.weights.origins import augreg, keras
from jaxtrain.weights.origins.names import Match, Part, Row, row, their_shape, to_ours, to_theirs
from jaxtrain.weights.origins.origins import ORIGINS
from jaxtrain.weights.stored import of_leftovers, target_model
from tests.golden.make_weights import CASES, WHOLE, family, inputs, unfolded, weight
from tests.support.inputs import abstract_variables, match_of

GOLDEN = Path(__file__).parents[1] / 'golden'
KEYS = {
    part: {name: unfolded(found) for name, found in every.items()}
    for part, every in json.loads((GOLDEN / 'weights.json').read_text()).items()
}
LOGITS = np.load(GOLDEN / 'weights.npz')
GATES = {'float64': 1e-12, 'float32': 1e-5}
WRONG = 1e-10  # an error that is none of rounding
# Each map that goes both ways, once.
MAPS = [*{family(name): name for name in CASES if not name.startswith('keras')}.values()]


# Of the same map as a smaller one, or at another size.
LARGE = [name for name in CASES if 'resnet50' in name and name != 'keras_resnet50_even']


def slower(names, slow) -> list:
    """The names as parameters, of which some are marked."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in names]


# Half of the time of a large model; its arrays are used again at once.
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
    """The rows of Keras's map, whose arrays are called layer/array in the golden file."""
    layers: dict[str, list[str]] = {}
    for key in keys_of(name):
        layers.setdefault(key.split('/')[0], []).append(key)
    found = []
    for theirs, ours, names in keras.resnet_layers(fields['depth'], layers):
        found += [keras.array(k, f'{ours}/{n}') for k, n in zip(layers[theirs], names, strict=True)]
    return tuple(found)


def model_of(case, fields: dict):
    c = base()
    c.model = fields
    return make_model(Config(c.to_dict()).model, case.outputs or 1)


def leaves_of(name: str, dtype: str = 'float64', rows=None, **changes):
    """(our model, its leaves by path, its variables) with the weights of a case, perhaps with other
    fields or another map.
    """
    case = CASES[name]
    right, model = (model_of(case, fields) for fields in (case.fields, case.fields | changes))
    with jax.enable_x64(False):  # traced once, for the maps and for models that are wrong as well
        params, state = abstract_variables(right, case.shape)
    shapes = {path: leaf.shape for path, leaf in by_path(params, state).items()}
    leaves = {}
    for found in rows or table(name):
        array = made(found.theirs, their_shape(found, shapes)).astype(dtype)
        leaves |= to_ours(found, array, shapes)
    # Without outputs no head is compared.
    head = {p: np.zeros(s) for p, s in shapes.items() if not case.outputs and p[:5] == 'head/'}
    params, state = from_paths({**leaves, **head}, params, state)
    return model, leaves, {'params': params, **state}


@cache
def program(model, method: str | None):
    """Compiled once for the right map and the wrong ones."""
    return jax.jit(partial(model.apply, train=False, method=method))


def apply(name: str, model, variables, dtype: str = 'float64') -> np.ndarray:
    """Our logits of a case."""
    x = inputs(CASES[name].shape)
    x = x.astype(dtype if x.ndim == 4 else 'int32')
    method = None if CASES[name].outputs else 'embed'
    return np.asarray(program(model, method)(variables, x))


def error(name: str, dtype: str = 'float64', rows=None, **changes) -> float:
    """max|ours - reference| / max|reference| of a case."""
    with jax.enable_x64(dtype == 'float64'):
        model, _, variables = leaves_of(name, dtype, rows, **changes)
        out = apply(name, model, variables, dtype)
    assert out.dtype == dtype
    wanted = LOGITS[name]
    return float(np.abs(out - wanted).max() / np.abs(wanted).max())


def shapes_of(match: Match) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in by_path(*target_model(match)[1]).items()}


@pytest.mark.parametrize('name', slower(CASES, LARGE))
def test_logits_are_those_of_the_reference(name):
    assert error(name) <= GATES['float64']


# One of each model, in the precision of training: maps are the same in both.
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
    """And nothing else: what it would write is what the reference loads strictly."""
    _, fields, outputs, shape, _ = CASES[name]
    match = match_of(fields, outputs, shape, table(name))
    shapes = shapes_of(match)
    found = {row.theirs: list(their_shape(row, shapes)) for row in match.rows}
    reference = {k: v for k, v in keys_of(name).items() if not spare(k, fields)}
    assert found == reference


def spare(key: str, fields: dict) -> bool:
    """Whether an array of the reference holds nothing of the model's own."""
    tied = key == 'lm_head.weight' and fields.get('tied', True)
    return tied or key.endswith('embeddings.mask_token')


@pytest.mark.parametrize('name', MAPS)
def test_there_and_back(name):
    _, fields, outputs, shape, _ = CASES[name]
    match = match_of(fields, outputs, shape, table(name))
    shapes = shapes_of(match)
    for found in match.rows:
        array = made(found.theirs, their_shape(found, shapes))
        np.testing.assert_array_equal(to_theirs(found, to_ours(found, array, shapes)), array)


def archive_of(keys: dict[str, list[int]]) -> Archive:
    """A file by keys and shapes, with no folder around it."""
    arrays = {
        key: jax.ShapeDtypeStruct(tuple(shape), np.dtype('i8' if 'num_batches' in key else 'f4'))
        for key, shape in keys.items()
    }
    return Archive(Path('file'), (Path('nowhere/file'),), 'safetensors', arrays, None)


@pytest.mark.parametrize('name', WHOLE)
def test_the_whole_model_is_read_from_its_keys(name):
    """By keys and shapes alone, with nothing left over and nothing guessed wrong."""
    origin, model, outputs = WHOLE[name]
    archive = archive_of(KEYS['whole'][name])
    module = next(m for m in ORIGINS[origin] if model in m.MODELS)
    match = module.match(archive, model)
    assert match.outputs == outputs
    assert of_leftovers(archive, match) == ([], [])
    if '384' in name:
        assert match.inputs == (384, 384, 3)
    elif name == 'huggingface_gpt2':
        assert match.inputs == (1024,)


def renamed(keys: dict, *changes: tuple[str, str]) -> dict[str, list[int]]:
    for old, new in changes:
        keys = {re.sub(old, new, key): shape for key, shape in keys.items()}
    return keys


# Files of other days: (whole model, what it is called there, keys that are there besides).
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
    name, changes, besides = OLD[what]
    origin, model, outputs = WHOLE[name]
    archive = archive_of({**renamed(KEYS['whole'][name], *changes), **besides})
    match = next(m for m in ORIGINS[origin] if model in m.MODELS).match(archive, model)
    assert match.outputs == outputs
    assert of_leftovers(archive, match) == ([], [])


AUGREG = {
    'by place': ('', augreg.PLACES),
    'by kind': ('', augreg.KINDS),
    'by kind, under params': ('params/', augreg.KINDS),
}


@pytest.mark.parametrize('what', AUGREG)
def test_all_names_of_augreg_are_of_the_same_leaves(what):
    """The first are those whose logits are compared."""
    prefix, places = AUGREG[what]
    fields = augreg.MODELS['vit_ti16']
    rows = augreg.rows(fields, 10, prefix, places)
    shapes = shapes_of(match_of(fields, 10, (224, 224, 3), rows))
    archive = archive_of({r.theirs: their_shape(r, shapes) for r in rows})
    match = augreg.match(archive, 'vit_ti16')
    assert (match.fields, match.outputs, match.inputs) == (fields, 10, (224, 224, 3))
    assert of_leftovers(archive, match) == ([], [])
    assert {r.theirs: r.parts for r in match.rows} == {r.theirs: r.parts for r in rows}
    assert [r.parts for r in match.rows] == [r.parts for r in augreg.rows(fields, 10)]


# What must not pass: (case, fields of the model that are wrong).
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
    """Without it arrays do not even fit; another way to 7x7 gives another result."""
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


def turned(r: Row) -> Row:
    return dataclasses.replace(r, parts=r.parts[::-1])


def flat_order(r: Row) -> Row:
    return row(r.theirs, r.parts[0].path, '(h w c) o -> o (h w c)', h=7, w=7, c=512)


def exchanged(name: str, one: str, other: str) -> tuple[Row, ...]:
    """Two arrays of a layer, each for the other."""
    rows, names = table(name), {one: other, other: one}
    paths = {part.path for r in rows for part in r.parts}

    def change(part: Part) -> Part:
        path = '/'.join(names.get(word, word) for word in part.path.split('/'))
        return dataclasses.replace(part, path=path if path in paths else part.path)

    found = tuple(dataclasses.replace(r, parts=tuple(map(change, r.parts))) for r in rows)
    assert found != rows
    return found


# (case, key of the rows that are wrong, how).
WRONG_ROWS = {
    'VGG: flattened as rows, columns, channels': (
        'torchvision_vgg11_even', 'classifier.0.weight', flat_order
    ),
    'rows for columns in a kernel': (
        'torchvision_resnet18_even', 'conv1.weight', pattern('h w i o -> o i w h')
    ),
    'torchvision: value, key, query': ('torchvision_vit', 'in_proj_weight', turned),
    'timm: value, key, query': ('timm_vit', 'attn.qkv.weight', turned),
    'timm: heads last': ('timm_vit', 'attn.qkv.weight', pattern('i h d -> (d h) i')),
    'timm: the class position last': ('timm_vit', 'pos_embed', turned),
    'timm: dense as it is there': ('timm_vit', 'attn.proj.weight', pattern('h d o -> (h d) o')),
    'GPT-2: value, key, query': ('huggingface_gpt2_odd', 'c_attn.weight', turned),
    'GPT-2: heads last': ('huggingface_gpt2_odd', 'c_attn.weight', pattern('i h d -> i (d h)')),
    'GPT-2: Conv1D transposed': (
        'huggingface_gpt2_odd', 'attn.c_proj.weight', pattern('h d o -> o (h d)')
    ),
    'BERT: dense as it is there': (
        'huggingface_bert_odd', 'attention.output.dense.weight', pattern('h d o -> (h d) o')
    ),
}  # fmt: skip
# (case, array of ours, another of the same shape).
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
    found = error(name, rows=exchanged(name, one, other))
    assert not found <= WRONG  # a variance below 0 gives NaN


def test_same_padding_cannot_be_seen_at_odd_sizes():
    """Which is why there are even ones."""
    assert error('torchvision_resnet18_odd', padding='SAME') <= GATES['float64']
