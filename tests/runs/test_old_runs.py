"""Runs made by the revision of tests/golden/runs.tar.xz: they resume, restore and evaluate."""

import json
import tarfile
from pathlib import Path

import pytest

from jaxtrain.config.keys import base
from jaxtrain.runs.folder import read_config
from tests.conftest import ROOT
from tests.golden.make_runs import evaluations, run

ARCHIVE = ROOT / 'tests' / 'golden' / 'runs.tar.xz'
# On the machine that made them the losses differ by 1e-7, as the tests compile otherwise; other
# batches, or other random numbers, by 1e-5 to 4e-3.
CLOSE = 5e-6


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter='data')
    monkeypatch.chdir(tmp_path)  # their configs name each other
    return tmp_path


def expected(runs: Path, name: str) -> list[dict]:
    return json.loads((runs / 'expected.json').read_text())[name]


def check(found: list[dict], lines: list[dict]) -> None:
    assert [(x['step'], x['split']) for x in found] == [(x['step'], x['split']) for x in lines]
    for ours, theirs in zip(found, lines, strict=True):
        assert ours['loss'] == pytest.approx(theirs['loss'], abs=CLOSE)
        assert ours['accuracy'] == pytest.approx(theirs['accuracy'], abs=0.01)


def without_defaults(runs: Path, name: str) -> None:
    """Takes from a run's config.json what an even older one would lack."""
    path = runs / name / 'config.json'
    written = json.loads(path.read_text())

    def changed(tree: dict, defaults: dict) -> dict:
        pairs = ((k, v, defaults.get(k)) for k, v in tree.items())
        return {
            k: changed(v, default) if isinstance(v, dict) and isinstance(default, dict) else v
            for k, v, default in pairs
            if json.dumps(v) != json.dumps(default)
        }

    written['config'] = changed(written['config'], base().to_dict())
    path.write_text(json.dumps(written))


@pytest.mark.parametrize(('name', 'lacks_keys'), [('scratch', False), ('text', True)])
def test_it_goes_on_as_it_would_have(runs, name, lacks_keys):
    if lacks_keys:
        without_defaults(runs, name)
    assert 'streams' not in read_config(name)
    assert run(name) == 0
    check(evaluations(runs / name), expected(runs, name))


def test_it_is_finished(runs, capsys):
    assert run('linear') == 0
    assert 'is finished' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['full', 'linear'])
def test_it_is_evaluated(runs, name, jaxtrain):
    outcome = jaxtrain('evaluate', f'--workdir={name}', '--split=test')
    line = expected(runs, name)[-1]
    assert outcome.code == 0, outcome.err
    found = dict(word.split('=') for word in outcome.out.split() if '=' in word)
    assert float(found['loss']) == pytest.approx(line['loss'], abs=1e-3)  # as printed


def test_what_starts_from_it_learns_the_same(runs):
    (runs / 'linear').rename(runs / 'before')
    assert run('linear') == 0
    check(evaluations(runs / 'linear'), expected(runs, 'linear'))
    now, before = (
        json.loads((runs / x / 'restore.json').read_text()) for x in ('linear', 'before')
    )
    assert now['leaves'] == before['leaves']
