"""Statements of README and the guides that can be checked; .ci/run runs their commands."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from jaxtrain.cli import COMMANDS
from tests.conftest import ROOT

README = (ROOT / 'README.md').read_text()
FOLDERS = ('configs', 'jaxtrain', 'launch', 'tests')
GUIDES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob('README.md'))
PAGES = [ROOT / 'README.md', *GUIDES]


def _blocks(text: str) -> list[list[str]]:
    spec = importlib.util.spec_from_file_location('commands', ROOT / '.ci' / 'commands.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.blocks(text)


def _links(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of each link within the repository; the anchor may be ''."""
    targets = re.findall(r'\]\(([^)\s:]+)\)', page.read_text())
    parts = [target.partition('#') for target in targets]
    return [((page.parent / path).resolve() if path else page, a) for path, _, a in parts]


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r'^#+ (.+)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def test_readme_is_short():
    assert len(README.splitlines()) < 180


def test_first_block_is_two_commands():
    first = _blocks(README)[0]
    assert len(first) == 2
    assert 'jaxtrain compare' in first[0]
    assert first[1].endswith('pytest')


def test_every_command_exists():
    blocks = [block for page in PAGES for block in _blocks(page.read_text())]
    commands = [line for block in blocks for line in block if 'bin/jaxtrain' in line]
    names = [shlex.split(line.split('bin/jaxtrain ')[1])[0] for line in commands]
    assert set(names) - {'--help'} <= set(COMMANDS)


def test_every_command_is_shown():
    lines = [line for block in _blocks(README) for line in block]
    missing = [c for c in COMMANDS if not any(f'bin/jaxtrain {c} ' in line for line in lines)]
    assert not missing, f'README shows no example of {missing}'


def test_readme_links_to_every_guide():
    assert set(GUIDES) <= {path for path, _ in _links(ROOT / 'README.md')}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page):
    for path, anchor in _links(page):
        assert path.exists(), f'{page}: {path}'
        assert not anchor or anchor in _anchors(path), f'{page}: {path}#{anchor}'


@pytest.mark.parametrize('number', range(3))
def test_three_configs_load(number, tmp_path):
    from jaxtrain.config.files import load

    source = re.findall(r'^```python\n(.*?)^```', README, re.MULTILINE | re.DOTALL)[number]
    (tmp_path / 'config.py').write_text(source)
    cfg = load(str(tmp_path / 'config.py'), [])
    assert cfg.regime == ('scratch', 'full', 'finetune')[number]
