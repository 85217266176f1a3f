"""Every origin's map and every model against the reference: logits, keys and shapes."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtrain.config import Config, base
from jaxtrain.models import make_model
from jaxtrain.partition import by_path, from_paths
from jaxtrain.state import abstract_variables
from jaxtrain.stored import of_leftovers, target_model
from jaxtrain.weights import keras
from jaxtrain.weights.archive import Archive
from jaxtrain.weights.names import Match, Row, row, their_shape, to_ours, to_theirs
from jaxtrain.weights.origins import ORIGINS
from tests.golden.make_weights import CASES, WHOLE, inputs, weight

GOLDEN = Path(__file__).parents[1] / 'golden'
KEYS = json.loads((GOLDEN / 'weights.json').read_text())
LOGITS = np.load(GOLDEN / 'weights.npz')
EXACT, SINGLE = 1e-12, 1e-5
TORCH = [name for name in CASES if not name.startswith('keras')]


def module_of(origin: str, family: str):
    return next(
        module
        for module in ORIGINS[origin]
        if family in {fields['name'] for fields in module.MODELS.values()}
    )


def table(name: str) -> tuple[Row, ...]:
    origin, fields, outputs, _ = CASES[name]
    if origin == 'keras':
        return keras_table(fields, name)
    return module_of(origin, fields['name']).rows(fields, outputs)


def keras_table(fields: dict, name: str) -> tuple[Row, ...]:
    """The rows of Keras's map, whose arrays are called layer/array in the golden file."""
    layers: dict[str, list[str]] = {}
    for key in KEYS['cases'][name]:
        layers.setdefault(key.split('/')[0], []).append(key)
    found = []
    for theirs, ours, names in keras.resnet_layers(fields['depth'], layers):
        found += [keras.array(k, f'{ours}/{n}') for k, n in zip(layers[theirs], names, strict=True)]
    return tuple(found)


def error(name: str, dtype: str = 'float64', rows=None, values=weight, **changes) -> float:
    """max|ours - reference| / max|reference| of a case, perhaps with other fields of the model."""
    _, fields, outputs, shape = CASES[name]
    with jax.enable_x64(dtype == 'float64'):
        c = base()
        c.model = {**fields, **changes}
        model = make_model(Config(c.to_dict()).model, outputs)
        params, state = abstract_variables(model, shape)
        shapes = {path: leaf.shape for path, leaf in by_path(params, state).items()}
        leaves = {}
        for found in rows or table(name):
            array = values(found.theirs, their_shape(found, shapes)).astype(dtype)
            leaves |= to_ours(found, array, shapes)
        params, state = from_paths(leaves, params, state)
        x = inputs(shape)
        x = x.astype(dtype if x.ndim == 4 else 'int32')
        apply = jax.jit(functools.partial(model.apply, train=False))
        out = np.asarray(apply({'params': params, **state}, x))
        assert out.dtype == dtype
    wanted = LOGITS[name]
    return float(np.abs(out - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize('name', CASES)
def test_logits_are_those_of_the_reference(name):
    assert error(name) <= EXACT


@pytest.mark.parametrize('name', CASES)
def test_and_in_single_precision(name):
    assert error(name, 'float32') <= SINGLE


@pytest.mark.parametrize('name', TORCH)
def test_a_map_names_every_array(name):
    """And nothing else: what it would write is what the reference loads strictly."""
    _, fields, outputs, shape = CASES[name]
    match = Match(fields, outputs, shape, table(name))
    shapes = {p: leaf.shape for p, leaf in by_path(*target_model(match)[1]).items()}
    found = {row.theirs: list(their_shape(row, shapes)) for row in match.rows}
    reference = {k: v for k, v in KEYS['cases'][name].items() if not without_place(k)}
    assert found == reference


def without_place(key: str) -> bool:
    """Keys of the reference that hold nothing of the model's own."""
    return key == 'lm_head.weight' or key.endswith('embeddings.mask_token')


@pytest.mark.parametrize('name', TORCH)
def test_there_and_back(name):
    _, fields, outputs, shape = CASES[name]
    match = Match(fields, outputs, shape, table(name))
    shapes = {p: leaf.shape for p, leaf in by_path(*target_model(match)[1]).items()}
    for found in match.rows:
        array = weight(found.theirs, their_shape(found, shapes))
        np.testing.assert_array_equal(to_theirs(found, to_ours(found, array, shapes)), array)


@pytest.mark.parametrize('name', WHOLE)
def test_the_whole_model_is_read_from_its_keys(name):
    """By keys and shapes alone, with nothing left over and nothing guessed wrong."""
    origin, model, outputs = WHOLE[name]
    arrays = {
        key: jax.ShapeDtypeStruct(tuple(shape), np.dtype('i8' if 'num_batches' in key else 'f4'))
        for key, shape in KEYS['whole'][name].items()
    }
    archive = Archive(Path('file'), (Path('nowhere/file'),), 'safetensors', arrays, None)
    module = next(m for m in ORIGINS[origin] if model in m.MODELS)
    match = module.match(archive, model)
    assert match.outputs == outputs
    faults, spare = of_leftovers(archive, match)
    assert not faults and not spare
    if '384' in name:
        assert match.inputs == (384, 384, 3)
    elif name == 'huggingface_gpt2':
        assert match.inputs == (1024,)


# What must not pass: (case, fields of the model that are wrong).
WRONG_FIELDS = {
    'SAME padding at an even size': ('torchvision_resnet18_even', {'padding': 'SAME'}),
    'stride on the 1x1': ('torchvision_resnet50_even', {'stride': '1x1'}),
    'stride on the 3x3, Keras': ('keras_resnet50_even', {'stride': '3x3'}),
    'BatchNorm eps of torch for Keras': ('keras_resnet50_even', {'norm_eps': 1e-5}),
    'BatchNorm eps of Keras for torch': ('torchvision_resnet18_odd', {'norm_eps': 1.001e-5}),
    'tanh for erf GELU': ('timm_vit', {'gelu': 'tanh'}),
    'erf for tanh GELU': ('augreg_vit', {'gelu': 'erf'}),
    'erf GELU in GPT-2': ('huggingface_gpt2', {'gelu': 'erf'}),
    'tanh GELU in BERT': ('huggingface_bert', {'gelu': 'tanh'}),
    'LayerNorm eps of timm for Hugging Face': ('huggingface_vit', {'norm_eps': 1e-6}),
    'LayerNorm eps of torch for timm': ('timm_vit', {'norm_eps': 1e-5}),
    'LayerNorm eps of torch in BERT': ('huggingface_bert', {'norm_eps': 1e-5}),
    'LayerNorm eps of BERT in GPT-2': ('huggingface_gpt2', {'norm_eps': 1e-12}),
    'no adaptive pool off 224': ('torchvision_vgg11_odd', {'pool': 0}),
    'norm before the pool': ('timm_vit_mean', {'norm_after_pool': False}),
    'the class token for the mean': ('timm_vit_mean', {'pool': 'token'}),
    'padding seen in BERT': ('huggingface_bert', {'pad': 96}),
}


@pytest.mark.parametrize('what', WRONG_FIELDS)
def test_a_wrong_model_fails(what):
    name, changes = WRONG_FIELDS[what]
    try:
        found = error(name, **changes)
    except (ValueError, TypeError):
        return  # the arrays do not even fit
    assert found > EXACT * 100


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


def swapped(name: str) -> tuple[Row, ...]:
    """Mean for variance in every BatchNorm."""
    rows = table(name)
    other = {'mean': 'var', 'var': 'mean'}
    found = []
    for r in rows:
        base_path, _, last = r.parts[0].path.rpartition('/')
        if last in other:
            r = row(r.theirs, f'{base_path}/{other[last]}', r.parts[0].pattern)
        found.append(r)
    return tuple(found)


WRONG_ROWS = {
    'VGG: flattened as rows, columns, channels': (
        'torchvision_vgg11_even',
        lambda n: changed(n, 'classifier.0.weight', flat_order),
    ),
    'timm: value, key, query': ('timm_vit', lambda n: changed(n, 'attn.qkv.weight', turned)),
    'timm: heads last': (
        'timm_vit',
        lambda n: changed(n, 'attn.qkv.weight', pattern('i h d -> (d h) i')),
    ),
    'GPT-2: value, key, query': (
        'huggingface_gpt2',
        lambda n: changed(n, 'c_attn.weight', turned),
    ),
    'GPT-2: Conv1D transposed': (
        'huggingface_gpt2',
        lambda n: changed(n, 'attn.c_proj.weight', pattern('h d o -> o (h d)')),
    ),
    'the class position last': ('timm_vit', lambda n: changed(n, 'pos_embed', turned)),
    'mean for variance': ('keras_resnet50_even', swapped),
    'rows for columns in a kernel': (
        'torchvision_resnet18_even',
        lambda n: changed(n, 'conv1.weight', pattern('h w i o -> o i w h')),
    ),
}


@pytest.mark.parametrize('what', WRONG_ROWS)
def test_a_wrong_map_fails(what):
    name, rows = WRONG_ROWS[what]
    found = error(name, rows=rows(name))
    assert not found <= EXACT * 100  # a variance below 0 gives NaN


def test_same_padding_cannot_be_seen_at_odd_sizes():
    """Which is why there are even ones."""
    assert error('torchvision_resnet18_odd', padding='SAME') <= EXACT
