"""shellcheck reports no mistakes in the shell scripts."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = [*sorted(ROOT.glob('launch/*.sh')), *sorted(ROOT.glob('launch/*.sbatch'))]
SCRIPTS += [ROOT / '.ci' / 'run', ROOT / '.ci' / 'lanes.sh']


def shellcheck(script: Path) -> subprocess.CompletedProcess:
    # pip installs the program beside the interpreter, which need not be on PATH.
    program = shutil.which('shellcheck', path=Path(sys.executable).parent)
    program = program or shutil.which('shellcheck')
    if program is None:
        pytest.skip('shellcheck is not installed; it comes with the extra dev')
    return subprocess.run([program, '--shell=bash', str(script)], capture_output=True, text=True)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    done = shellcheck(script)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_scripts_are_checked():
    """Including a script that is added to launch/ with another suffix."""
    files = [path for path in (ROOT / 'launch').rglob('*') if path.is_file()]
    scripts = {path for path in files if re.match(rb'#!.*sh\b', path.read_bytes())}
    assert scripts == {path for path in SCRIPTS if path.parent.name == 'launch'}


def test_a_mistake_is_reported(tmp_path):
    script = tmp_path / 'script.sh'
    script.write_text('#!/usr/bin/env bash\nrm -rf $1/*\n')
    assert 'SC2086' in shellcheck(script).stdout
