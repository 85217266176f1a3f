"""Runs in tests/golden/runs.tar.xz, made by an older revision, resume, restore and evaluate."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from jaxtrain.config.keys import PREPROCESSING, base
from jaxtrain.runs.folder import read_config
from tests.conftest import ROOT
from tests.golden.make_runs import evaluations, run

ARCHIVE = ROOT / 'tests' / 'golden' / 'runs.tar.xz'
# On the machine that made the runs, the losses differ by 1e-7, since the tests use other compiler
# options. With other batches or other random numbers they differ by 1e-5 to 4e-3.
CLOSE = 5e-6


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path)  # early versions of Python 3.11 have no filter
    monkeypatch.chdir(tmp_path)  # the configs refer to each other by relative paths
    return tmp_path


def expected(runs: Path, name: str) -> list[dict]:
    return json.loads((runs / 'expected.json').read_text())[name]


def check(actual: list[dict], expected: list[dict]) -> None:
    places = [[(line['step'], line['split']) for line in lines] for lines in (actual, expected)]
    assert places[0] == places[1]
    for new, old in zip(actual, expected, strict=True):
        assert new['loss'] == pytest.approx(old['loss'], abs=CLOSE)
        assert new['accuracy'] == pytest.approx(old['accuracy'], abs=0.01)


def without_defaults(runs: Path, name: str) -> None:
    """Remove the default values from a run's config.json, as if their keys did not exist then."""
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
def test_an_old_run_resumes_with_the_same_losses(runs, name, lacks_keys):
    if lacks_keys:
        without_defaults(runs, name)
    assert 'streams' not in read_config(name)
    assert run(name) == 0
    check(evaluations(runs / name), expected(runs, name))


def test_an_old_finished_run_counts_as_finished(runs, capsys):
    assert run('linear') == 0
    assert 'is finished' in capsys.readouterr().out


@pytest.mark.parametrize(('name', 'lacks_keys'), [('full', True), ('linear', False)])
def test_an_old_run_is_evaluated(runs, name, lacks_keys, jaxtrain):
    if lacks_keys:  # as runs from before preprocessing had keys
        path = runs / name / 'config.json'
        written = json.loads(path.read_text())
        for key in PREPROCESSING:
            written['config']['data'].pop(key, None)
        path.write_text(json.dumps(written))
    outcome = jaxtrain('evaluate', f'--workdir={name}', '--split=test')
    line = expected(runs, name)[-1]
    assert outcome.code == 0, outcome.err
    printed = dict(word.split('=') for word in outcome.out.split() if '=' in word)
    assert float(printed['loss']) == pytest.approx(line['loss'], abs=1e-3)  # the printed precision


def test_a_run_that_starts_from_an_old_one_has_the_same_losses(runs):
    """It was killed before its first checkpoint, and starts again with the streams of its time."""
    (runs / 'linear').rename(runs / 'before')
    (runs / 'linear').mkdir()
    shutil.copy(runs / 'before' / 'config.json', runs / 'linear')
    assert run('linear') == 0
    check(evaluations(runs / 'linear'), expected(runs, 'linear'))
    now, before = (
        json.loads((runs / x / 'restore.json').read_text()) for x in ('linear', 'before')
    )
    assert now['leaves'] == before['leaves']
