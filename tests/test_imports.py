"""Importing jaxtrain changes nothing in the process and loads no heavy library."""

import ast
import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

# Each takes a tenth of a second or more to import.
HEAVY = (
    'cv2', 'grain', 'h5py', 'matplotlib', 'orbax', 'scipy', 'sklearn', 'tensorboardX',
    'tensorflow_datasets', 'tokenizers',
)  # fmt: skip
MODULES = ['jaxtrain.' + '.'.join(p.relative_to(ROOT / 'jaxtrain').with_suffix('').parts)
           for p in sorted((ROOT / 'jaxtrain').rglob('*.py')) if p.stem[:2] != '__']  # fmt: skip

SNAPSHOTS = """
def snapshot():
    names = sorted(logging.root.manager.loggerDict)
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    return {
        'warnings': [str(rule) for rule in warnings.filters],
        'loggers': [[x.name, x.level, list(map(str, x.filters))] for x in loggers if x.level
                    or x.filters],
        'event loops': str(type(asyncio.get_event_loop_policy())),
        'environment': dict(os.environ),
        'signals': [str(signal.getsignal(number)) for number in range(1, signal.NSIG)],
        'jax': {name: str(value) for name, value in jax.config.values.items()},
    }

before = snapshot()
for name in MODULES:
    importlib.import_module(name)
print(json.dumps([before, snapshot()]))
"""

LOADED = """
import builtins, importlib, json, sys

statements, whole = [], builtins.__import__

def note(name, globals=None, *rest, **options):
    importer, library = (globals or {}).get('__name__', ''), name.split('.')[0]
    if importer.startswith('jaxtrain') and library in HEAVY:
        statements.append([importer, library])
    return whole(name, globals, *rest, **options)

builtins.__import__ = note
for name in ('jaxtrain.cli', 'jaxtrain.inspection.status', 'jaxtrain.inspection.status_text'):
    importlib.import_module(name)
light = [library for library in (*HEAVY, 'jax', 'flax') if library in sys.modules]
importlib.import_module('jaxtrain.loop.train')
print(json.dumps([light, statements]))
"""


def run(program: str) -> list | dict:
    """Runs a program in a new process and parses the JSON that it prints."""
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def foreign_imports(path: Path) -> list[str]:
    """The statements at the top level of a file that import other packages."""
    return [
        ast.unparse(node)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and 'jaxtrain' not in ast.unparse(node)
        and '__future__' not in ast.unparse(node)
    ]


def test_importing_changes_nothing():
    """Other packages are imported before the first snapshot, since they may change the process."""
    files = sorted((ROOT / 'jaxtrain').rglob('*.py'))
    foreign = sorted({line for path in files for line in foreign_imports(path)})
    libraries = ['import asyncio, importlib, json, logging, os, signal, warnings, jax', *foreign]
    before, after = run('\n'.join([*libraries, f'MODULES = {MODULES}', SNAPSHOTS]))
    assert before == after


def test_heavy_libraries_are_imported_only_for_use():
    """`status` does not import JAX either; `train` imports JAX, and what the data needs."""
    light, statements = run(f'HEAVY = {HEAVY}\n{LOADED}')
    assert light == []
    assert [x for x in statements if not x[0].startswith('jaxtrain.data.')] == []
