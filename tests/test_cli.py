"""The command line: help, imports, and the output with and without a terminal."""

import os
import pty
import re
import subprocess
import sys

import pytest

from jaxtrain import __version__
from jaxtrain.cli import COMMANDS
from tests.conftest import ROOT, TINY, start

FLAGS = {
    'status': {'workdir', 'json'},
    'train': {
        'config',
        'workdir',
        'coordinator',
        'processes',
        'process',
        'port',
        'start_timeout',
        'config.KEY=VALUE',
    },  # fmt: skip
    'evaluate': {'workdir', 'split', 'checkpoint'},
    'predict': {
        'workdir',
        'checkpoint',
        'output',
        'on_bad_image',
        'top',
        'new_tokens',
        'temperature',
        'top_k',
        'top_p',
        'seed',
    },  # fmt: skip
    'inspect': {'config', 'config.KEY=VALUE'},
    'plan': {'config', 'topology', 'slices', 'price', 'suggest', 'output', 'config.KEY=VALUE'},
    'import': {'model', 'workdir', 'drop', 'field', 'allow-field'},
    'export': {'workdir', 'checkpoint', 'origin', 'output'},
    'compare': {'config', 'workdir', 'full', 'config.KEY=VALUE'},
}

# Runs a command, then prints the modules that it has imported.
PROBE = """
import sys
from jaxtrain.cli import main
code = main(sys.argv[1:]) if sys.argv[1:] else 0
print('modules', *sorted({name.split('.')[0] for name in sys.modules}))
sys.exit(code)
"""


@pytest.mark.parametrize('words', [(), ('--help',), ('-h',), ('help',)])
def test_help_lists_every_command(words, jaxtrain):
    outcome = jaxtrain(*words)
    assert outcome.code == 0 and not outcome.err
    output = dict(re.findall(r'^  (\w+) +(\S.*)$', outcome.out, re.MULTILINE))
    assert set(output) == set(COMMANDS) == set(FLAGS)
    assert all(output[name] == c.__doc__.splitlines()[0] for name, c in COMMANDS.items())


@pytest.mark.parametrize('command', FLAGS)
def test_the_help_of_a_command_shows_its_flags_and_an_example(command, capsys, jaxtrain):
    with pytest.raises(SystemExit) as caught:
        jaxtrain(command, '--help')
    assert caught.value.code == 0
    output = capsys.readouterr().out
    flags = re.findall(r'^  --(\S+) +(\S.*)$', output, re.MULTILINE)
    assert {name for name, _ in flags} == FLAGS[command]
    example = re.search(rf'^  jaxtrain {command} (.*--.*)$', output, re.MULTILINE)
    assert example, output
    used = {word.split('=')[0][2:] for word in example[1].split() if word.startswith('--')}
    assert used and used <= FLAGS[command]


@pytest.mark.parametrize(
    ('words', 'flag'),
    [
        (['train', f'--config={TINY}', '--workdir='], '--workdir='),
        (['train', '--config=', '--workdir=x'], '--config='),
        (['plan', f'--config={TINY}:scratch', '--output='], '--output='),
        (['evaluate', '--workdir=x', '--split= '], '--split='),
    ],
)
def test_empty_flags_are_refused(words, flag, jaxtrain):
    outcome = jaxtrain(*words)
    assert outcome.code == 2 and outcome.err.count('\n') == 1
    assert f'{flag} is empty' in outcome.err and f'{words[0]} --help' in outcome.err


def test_version(jaxtrain):
    assert jaxtrain('--version') == (0, f'{__version__}\n', '')


def test_the_module_is_the_command(jaxtrain):
    words = [sys.executable, '-m', 'jaxtrain', '--help']
    child = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0
    assert child.stdout == jaxtrain('--help').out


def test_nothing_heavy_is_imported_before_a_command_needs_it():
    child = subprocess.run([sys.executable, '-c', PROBE], cwd=ROOT, capture_output=True, text=True)
    modules = set(child.stdout.split())
    assert child.returncode == 0 and 'jaxtrain' in modules, child.stderr
    heavy = {'jax', 'flax', 'tensorflow_datasets', 'matplotlib', 'orbax', 'rich'}
    assert not modules & (heavy | {'etils', 'ml_collections'})


def test_a_run_without_a_terminal(tmp_path):
    child = start('train', f'--config={TINY}', f'--workdir={tmp_path / "run"}')
    out, _ = child.communicate(timeout=120)
    assert child.returncode == 0, out
    assert re.findall(r'^ +(\d+) +\d\.\d+ ', out, re.MULTILINE) == ['10', '20']
    control = [c for c in out if c < ' ' and c != '\n' or c == '\x7f']
    assert not control, out


def test_a_run_on_a_terminal(tmp_path):
    """In a process that has imported nothing, unlike those of `start`: it says what it imports."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, '-c', PROBE, 'train', f'--config={TINY}', f'--workdir={tmp_path}'],
        env={**os.environ, 'TERM': 'xterm-256color', 'COLUMNS': '120'},
        cwd=ROOT,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    output = read_all(master)
    assert child.wait(timeout=60) == 0, output
    # The cursor is hidden, a progress bar is drawn, and the cursor is shown again at the end.
    assert '\x1b[?25l' in output and '\x1b[?25h' in output
    assert '━' in output and '20/20' in output
    plain = re.sub(r'\x1b\[[?\d;]*[A-Za-z]', '', output)
    rows = [line.split() for line in re.split(r'[\r\n]', plain) if re.match(r' +\d+ +\d', line)]
    assert [row[0] for row in rows] == ['10', '20'], output
    modules = set(plain.rpartition('modules ')[2].split())
    assert {'jax', 'tensorflow_datasets', 'matplotlib'} <= modules
    assert not modules & {'tensorflow', 'torch', 'keras'}


def read_all(master: int) -> str:
    """Reads what is written to a terminal until its last writer closes it."""
    output = b''
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux reports a closed other end as an error
            chunk = b''
        if not chunk:
            os.close(master)
            return output.decode()
        output += chunk
