"""What the user states about fields beside weights: --field, --allow-field, and their keys."""

import json

import pytest

from jaxtrain.errors import UserError
from jaxtrain.json_file import Record
from jaxtrain.weights.import_weights import import_weights
from jaxtrain.weights.origins import huggingface_text, huggingface_vit
from jaxtrain.weights.schemas.schema import (
    Only,
    assumptions,
    computed,
    make_given,
    no_effect,
)
from jaxtrain.weights.stored import Foreign
from tests.support.foreign_files import arrays, write

SCHEMA = {
    **computed('heads'),
    **no_effect('bookkeeping', 'author'),
    'causal': Only((False,), 'causal attention'),
}
FLAGS = ('--field', '--allow-field')


def fault(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_a_field_is_computed_passed_or_refused(tmp_path):
    path = tmp_path / 'config.json'
    given = make_given([], [], FLAGS)
    path.write_text('{"heads": 3, "author": "a", "causal": false}')
    assert given.read(path, SCHEMA).integer('heads') == 3
    for content, words in (
        ({'causal': True}, ('causal=true', 'only false', 'needs causal attention')),
        ({'head': 4}, ('head=4', "did you mean 'heads'?", '--allow-field=head')),
    ):
        path.write_text(json.dumps(content))
        message = fault(given.read, path, SCHEMA)
        assert all(word in message for word in (str(path), *words)), message


def test_allowed_fields_are_left_out_and_recorded(tmp_path):
    path = tmp_path / 'config.json'
    path.write_text('{"causal": true, "new": 1, "heads": 2}')
    given = make_given([], ['new', 'causal', 'other'], FLAGS)
    assert dict(given.read(path, SCHEMA).values) == {'heads': 2}
    assert given.accepted == ('new', 'causal')
    assert '--allow-field=other' in fault(given.check_used)


def test_stated_fields_are_those_of_a_file_that_does_not_exist(tmp_path):
    given = make_given(['heads=4', 'causal=true', 'none=1'], [], FLAGS)
    assert 'causal=true' in fault(given.read, tmp_path / 'config.json', SCHEMA)
    given = make_given(['heads=4', 'none=1'], [], FLAGS)
    assert given.read(tmp_path / 'config.json', SCHEMA).integer('heads') == 4
    assert '--field=none' in fault(given.check_used)
    (tmp_path / 'config.json').write_text('{"heads": 3}')
    message = fault(given.read, tmp_path / 'config.json', SCHEMA)
    assert 'heads=4' in message and 'heads=3' in message
    assert 'NAME=VALUE' in fault(make_given, ['heads'], [], FLAGS)


def test_what_is_assumed():
    assert assumptions(Record('at/config.json', {'a': 1}), {'a': 2}) == ()
    (words,) = assumptions(Record('at/config.json', {}), {'a': 2, 'b': 'x'})
    assert 'a=2, b="x"' in words and 'config.json' in words and '--field' in words


@pytest.fixture(scope='module')
def gpt(tmp_path_factory):
    """A tiny GPT-2 in a folder without JSON files, and its number of parameters."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = {'name': 'gpt', 'width': 24, 'depth': 1, 'heads': 3, 'context': 8}
        patch.setitem(huggingface_text.MODELS, 'tiny', tiny)
        folder = tmp_path_factory.mktemp('gpt')
        weights = arrays(huggingface_text, 'tiny', 11, (8,))
        write(folder / 'model.safetensors', weights)
        yield folder, weights


def test_the_import_says_what_it_assumes_and_records_what_is_stated(gpt, tmp_path):
    folder, _ = gpt

    def run(name: str, *stated, allowed=()):
        foreign = Foreign('huggingface', 'tiny', make_given(stated, allowed, FLAGS))
        message = import_weights(str(folder), foreign, str(tmp_path / name))
        return message, json.loads((tmp_path / name / 'config.json').read_text())

    message, written = run('plain')
    assert 'n_head=3' in message and written['config']['model']['heads'] == 3
    message, written = run('stated', 'n_head=4', 'scale_attn_weights=false')
    assert 'n_head' not in message and written['config']['model']['heads'] == 4
    assert written['config']['model']['scale_attention'] is False
    assert written['import']['fields'] == {'n_head': '4', 'scale_attn_weights': 'false'}
    (folder / 'config.json').write_text('{"model_type": "gpt2", "rotary": 1}')
    assert 'rotary=1' in fault(run, 'refused')
    message, written = run('allowed', allowed=['rotary'])
    assert written['import']['allowed_fields'] == ['rotary'] and 'rotary' in message
    (folder / 'config.json').unlink()


def test_an_output_layer_is_compared_with_the_embedding(gpt, tmp_path):
    folder, weights = gpt
    for name, factor in (('tied', 1), ('untied', 2)):
        head = weights['transformer.wte.weight'] * factor
        (tmp_path / name).mkdir()
        write(tmp_path / name / 'model.safetensors', {**weights, 'lm_head.weight': head})
        message = import_weights(
            str(tmp_path / name), Foreign('huggingface', 'tiny'), str(tmp_path / f'{name}-run')
        )
        written = json.loads((tmp_path / f'{name}-run' / 'config.json').read_text())
        assert written['config']['model']['tied'] == (name == 'tied')
        assert ('equal to the token embedding' in message) == (name == 'tied')


def test_a_head_of_one_output_has_no_classes(tmp_path, monkeypatch):
    """transformers takes one output for a regression, and cross-encoders for a score."""
    tiny = {'name': 'vit', 'patch': (8, 8), 'width': 24, 'depth': 1, 'heads': 3, 'mlp': 32}
    monkeypatch.setitem(huggingface_vit.MODELS, 'tiny_vit', tiny)
    (tmp_path / 'vit').mkdir()
    write(tmp_path / 'vit/model.safetensors', arrays(huggingface_vit, 'tiny_vit', 1, (16, 16, 3)))
    (tmp_path / 'vit/config.json').write_text('{"id2label": {"0": "LABEL_0"}}')

    def run(*stated) -> dict:
        foreign = Foreign('huggingface', 'tiny_vit', make_given(stated, (), FLAGS))
        import_weights(str(tmp_path / 'vit'), foreign, str(tmp_path / 'run'))
        return json.loads((tmp_path / 'run/config.json').read_text())

    assert '--field=task=binary' in fault(run)
    written = run('task=binary')
    assert written['config']['task']['name'] == 'binary'
    assert written['data']['classes'] == ['0', '1']
