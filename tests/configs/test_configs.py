"""The demo configs: each variant loads, and the variants differ in few keys."""

import ast
import re

import pytest

from jaxtrain.config.closed import flatten
from jaxtrain.config.files import load
from tests.conftest import ROOT

FILES = ('configs/alphabets.py', 'configs/digits.py')
VARIANTS = ('full', 'scratch', 'linear', 'finetune')

both = pytest.mark.parametrize('file', FILES)


def keys(file: str, variant: str) -> dict:
    return dict(flatten(load(f'{ROOT / file}:{variant}', []).to_dict()))


def docstring(file: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / file).read_text()))


def differing(file: str, one: str, other: str) -> set[str]:
    a, b = keys(file, one), keys(file, other)
    return {key for key in {*a, *b} if a.get(key) != b.get(key)}


@both
@pytest.mark.parametrize('variant', VARIANTS)
def test_variant_loads(file, variant):
    config = keys(file, variant)
    regimes = {'full': 'full', 'scratch': 'scratch'}
    assert config['regime'] == regimes.get(variant, 'finetune')
    assert bool(config['init_from']) == (config['regime'] == 'finetune')
    assert config['steps'] > 0 and config['eval_every'] > 0
    assert config['steps'] % config['eval_every'] == 0


@both
@pytest.mark.parametrize('variant', ['linear', 'finetune'])
def test_a_regime_is_a_few_keys(file, variant):
    changed = differing(file, 'scratch', variant)
    assert {'regime', 'init_from', 'restore.rules'} < changed and len(changed) <= 5
    # The arms of a comparison see the same data for the same number of steps.
    assert not {key for key in changed if key.startswith(('data.', 'model.', 'steps', 'batch'))}


def test_both_configs_share_one_checkpoint():
    assert keys(FILES[0], 'full') == keys(FILES[1], 'full')
    arms = [keys(file, arm) for file in FILES for arm in ('linear', 'finetune')]
    assert len({arm['init_from'] for arm in arms}) == 1
    full = keys(FILES[0], 'full')
    model = {key: value for key, value in full.items() if key.startswith('model.')}
    assert all(model.items() <= arm.items() for arm in arms)


@both
def test_docstring_names_commands_that_work(file):
    commands = re.findall(r'^    jaxtrain (\w+) (.*)$', docstring(file), re.MULTILINE)
    assert ('compare', file) in [
        (command, re.search(r'--config=(\S+)', words)[1]) for command, words in commands
    ]
    for command, words in commands:
        assert command in ('train', 'compare') and '--workdir=' in words
        spec = re.search(r'--config=(\S+)', words)[1]
        load(str(ROOT / spec), [])


@both
def test_docstring_has_a_row_for_each_variant(file):
    rows = re.findall(r'^(\w+) .*%', docstring(file), re.MULTILINE)
    assert rows == list(VARIANTS)
