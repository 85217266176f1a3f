"""The code follows the map in jaxtrain/README.md: the order of floors, and the size limits."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

HOUSE = ROOT / 'jaxtrain'
TEXT = (HOUSE / 'README.md').read_text()
# Floors from the top down: folders, and files without their suffix.
FLOORS = re.findall(r'^  (\w+)(?:/|\.py) ', re.search(r'```\n(.*?)```', TEXT, re.S)[1], re.M)
LIMITS = re.search(
    r'A folder holds at most (\d+) files\s\((\d+) where each is one of a kind: (.*?)\), a\s'
    r'file at most (\d+) lines, a function at most (\d+) \(`(\w+)` excepted\)',
    TEXT,
    re.S,
)
# Without __init__.py and __main__.py of the package, which are above all floors.
FILES = [
    path for path in sorted(HOUSE.rglob('*.py')) if path.parent != HOUSE or path.stem[0] != '_'
]


def imports(path: Path) -> set[Path]:
    """The files of the package that a file imports, at any place in it."""
    result = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert not isinstance(node, ast.ImportFrom), f'{path}: a relative import'
            continue
        files = {file_of(name) for name in names} - {None}
        # `from package import module` depends on the module, not on the package's __init__.py.
        result |= {f for f in files if len(files) == 1 or f.name != '__init__.py'}
    return result - {path, HOUSE / '__init__.py'}


def file_of(module: str) -> Path | None:
    """The file of a module; None for modules of other packages."""
    if module.split('.')[0] != 'jaxtrain':
        return None
    path = ROOT / module.replace('.', '/')
    files = (path.with_suffix('.py'), path / '__init__.py')
    return next((file for file in files if file.is_file()), None)


def floor(path: Path) -> int:
    """The number of a file's floor, counted from the top."""
    return FLOORS.index(path.relative_to(HOUSE).parts[0].removesuffix('.py'))


def test_the_map_names_every_floor():
    names = {p.stem for p in HOUSE.iterdir() if p.suffix == '.py' or (p / '__init__.py').exists()}
    assert set(FLOORS) == names - {'__init__', '__main__'}
    assert len(set(FLOORS)) == len(FLOORS)


def test_a_floor_imports_only_from_floors_below():
    above = [
        f'{path.relative_to(HOUSE)} imports {other.relative_to(HOUSE)}'
        for path in FILES
        for other in imports(path)
        if floor(other) < floor(path)
    ]
    assert not above, '\n'.join(above)


def test_imports_form_no_cycle():
    try:
        TopologicalSorter({path: imports(path) for path in FILES}).prepare()
    except CycleError as error:
        pytest.fail(' -> '.join(str(p.relative_to(HOUSE)) for p in error.args[1]))


def test_folders_files_and_functions_are_small():
    folder_limit, kind_limit, file_limit, function_limit = (int(LIMITS[i]) for i in (1, 2, 4, 5))
    kinds, excepted = re.findall(r'`([\w/]+)`', LIMITS[3]), LIMITS[6]
    over = []
    for folder in {path.parent for path in FILES}:
        name = str(folder.relative_to(HOUSE))
        count = len([p for p in folder.glob('*.py') if p.name != '__init__.py'])
        if count > (kind_limit if name in kinds else folder_limit):
            over.append(f'{name}/ has {count} files')
    for path in FILES:
        name, text = path.relative_to(HOUSE), path.read_text()
        if (lines := len(text.splitlines())) > file_limit:
            over.append(f'{name} has {lines} lines')
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != excepted:
                lines = node.end_lineno - node.lineno + 1
                if lines > function_limit:
                    over.append(f'{name}: {node.name} has {lines} lines')
    assert not over, '\n'.join(over)
    assert set(kinds) <= {str(p.parent.relative_to(HOUSE)) for p in FILES}


def test_file_names_are_not_vague():
    vague = ('util', 'utils', 'helper', 'helpers', 'common', 'misc')
    assert not [path for path in FILES if path.stem in vague]
