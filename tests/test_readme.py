"""README tells the truth about what can be checked here; .ci/run runs its commands."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from jaxtrain.cli import COMMANDS
from tests.conftest import ROOT

README = (ROOT / 'README.md').read_text()


def _blocks(text: str) -> list[list[str]]:
    spec = importlib.util.spec_from_file_location('commands', ROOT / '.ci' / 'commands.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.blocks(text)


def test_first_block_is_two_commands():
    first = _blocks(README)[0]
    assert len(first) == 2
    assert 'jaxtrain compare' in first[0]
    assert first[1].endswith('pytest')


def test_every_command_exists():
    commands = [line for block in _blocks(README) for line in block if 'bin/jaxtrain' in line]
    names = [shlex.split(line.split('bin/jaxtrain ')[1])[0] for line in commands]
    assert set(names) - {'--help'} <= set(COMMANDS)
    assert set(COMMANDS) <= set(names), 'README shows no example of a command'


def test_map_names_every_module():
    house = README.split('## The house')[1].split('## ')[0]
    files = [*(ROOT / 'jaxtrain').glob('*.py'), *(ROOT / 'jaxtrain' / 'pod').glob('*.py')]
    modules = {path.name for path in files if not path.name.startswith('__')}
    named = set(re.findall(r'[a-z_]+\.py', house))
    assert modules <= named
    others = {p.name for folder in ('configs', 'launch') for p in (ROOT / folder).glob('*.py')}
    assert named - others <= modules


def test_links_lead_somewhere():
    for page in (Path('README.md'), Path('configs/README.md'), Path('launch/README.md')):
        for link in re.findall(r'\]\(([^)#:]+)\)', (ROOT / page).read_text()):
            assert (ROOT / page.parent / link).exists(), f'{page}: {link}'


@pytest.mark.parametrize('number', range(3))
def test_three_configs_load(number, tmp_path):
    from jaxtrain.config.files import load

    source = re.findall(r'^```python\n(.*?)^```', README, re.MULTILINE | re.DOTALL)[number]
    (tmp_path / 'config.py').write_text(source)
    cfg = load(str(tmp_path / 'config.py'), [])
    assert cfg.regime == ('scratch', 'full', 'finetune')[number]


def test_imports_go_one_way():
    """No module imports from a layer above its own, and nothing imports cli."""
    layers = [
        {
            'errors',
            'keys',
            'config',
            'config_file',
            'rules',
            'clock',
            'terminal',
            'stats',
            'verdict',
            'storage',
            'events',
            'duration',
            'flops',
            'chips',
            'hlo',
            'topology',
            'profiling',
        },
        {
            'optim',
            'partition',
            'mesh',
            'sharding',
            'precision',
            'replicas',
            'tasks',
            'data',
            'models',
            'tracking',
            'weights',
            'aot',
            'fingerprint',
            'pod',
        },
        {
            'state',
            'step',
            'run',
            'checkpoint',
            'checkpoint_files',
            'bundle',
            'stored',
            'restore',
            'evaluate',
            'generate',
        },
        {'job', 'trained'},
        {'schedule'},
        {'progress'},
        {
            'loop',
            'inspect',
            'plan',
            'suggest',
            'compare',
            'report',
            'predict',
            'import_weights',
            'export_weights',
            'status',
        },
        {'cli'},
    ]
    height = {name: number for number, layer in enumerate(layers) for name in layer}
    for path in (ROOT / 'jaxtrain').rglob('*.py'):
        own = path.relative_to(ROOT / 'jaxtrain').parts[0].removesuffix('.py')
        if own.startswith('__'):
            continue
        text = path.read_text()
        found = set(re.findall(r'^\s*from jaxtrain\.(\w+)', text, re.MULTILINE))
        for names in re.findall(r'^\s*from jaxtrain import (.+)$', text, re.MULTILINE):
            found |= {n.split(' as ')[0].strip() for n in names.split(',')} & set(height)
        for other in found:
            assert height[other] <= height[own], f'{path.name} imports {other}'
