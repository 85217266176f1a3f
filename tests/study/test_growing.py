"""A comparison that grows: more seeds, other arms, other keys of `compare`."""

import json
from pathlib import Path

import pytest

from jaxtrain.cli import main
from jaxtrain.runs.folder import read_config
from tests.conftest import TINY

STEPS = '--config.steps=10'
ARMS = ('scratch', 'finetune')


def compare(workdir: Path, full: Path, arms: tuple[str, ...], seeds: int, *more: str) -> dict:
    """Runs a comparison and returns its report without times."""
    words = [f'--config.compare.arms={arms!r}', f'--config.compare.seeds={seeds}', *more]
    given = (f'--config={TINY}', STEPS, f'--full={full}', f'--workdir={workdir}')
    assert main(['compare', *given, *words]) == 0
    content = json.loads((workdir / 'compare.json').read_text())
    return {**content, 'arms': [{**row, 'seconds': 0} for row in content['arms']]}


def stamps(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}


@pytest.mark.slow
def test_it_ends_with_the_table_of_one_made_at_once(pretrained, capsys, tmp_path):
    grown = tmp_path / 'grown'
    compare(grown, pretrained, ('scratch', 'linear'), 1)
    before = stamps(grown / 'linear') | stamps(grown / 'scratch' / 'seed_0')
    tolerance = '--config.compare.tolerance=0.03'
    content = compare(grown, pretrained, ARMS, 3, tolerance)
    # The runs that were there are neither trained again nor touched.
    after = stamps(grown)
    assert {path: after[path] for path in before} == before
    left = 'Not part of this comparison: linear/seed_0.'
    assert left in (grown / 'report.md').read_text() and left in capsys.readouterr().out
    assert content == compare(tmp_path / 'at_once', pretrained, ARMS, 3, tolerance)
    assert [row['seeds'] for row in content['arms']] == [1, 3, 3]
    assert 'Not part' not in (tmp_path / 'at_once' / 'report.md').read_text()


def test_the_checkpoint_of_the_arms_cannot_be_trained_further(jaxtrain, pretrained, tmp_path):
    (tmp_path / 'full').symlink_to(pretrained)
    given = (f'--config={TINY}', '--config.steps=99', f'--workdir={tmp_path}')
    outcome = jaxtrain('compare', *given, '--config.compare.seeds=1')
    assert outcome.code == 2 and 'config.steps is 60' in outcome.err and '99' in outcome.err
    assert {path.name for path in tmp_path.iterdir()} == {'full'}


def seeds(workdir: Path) -> list[int]:
    """The seeds of the random streams of all runs of seed 0."""
    return [read_config(run)['seeds'][-1] for run in sorted(workdir.glob('*/seed_0'))]


def test_arms_share_their_streams_whatever_they_start_from(pretrained, capsys, tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    compare(first, pretrained, ARMS, 1)
    assert len(set(seeds(first))) == 1
    # The seeds of this start are those that its own arms would draw otherwise.
    start = first / 'scratch' / 'seed_0'
    words = '--config.data.crop_rounding=down'
    compare(second, start, ARMS, 1, words)
    assert len(set(seeds(second))) == 1 and set(seeds(first)).isdisjoint(seeds(second))
    out = capsys.readouterr().out
    assert out.count('ignored: config.data.crop_rounding') == 1
    assert 'scratch, finetune: ignored: config.data.crop_rounding' in out
    assert 'Not paired' not in out
    # A run of an earlier version has other streams.
    path = second / 'scratch' / 'seed_0' / 'config.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in ('streams', 'seeds')}))
    compare(second, start, ARMS, 1, words)
    assert 'Not paired at seed 0' in capsys.readouterr().out
    assert 'Not paired at seed 0' in (second / 'report.md').read_text()
    # Arms that have begun from another checkpoint are noticed before anything is trained.
    before = stamps(second)
    given = [f'--config={TINY}', STEPS, words, f'--workdir={second}', f'--full={pretrained}']
    arms = "--config.compare.arms=('linear','finetune')"
    assert main(['compare', *given, arms, '--config.compare.seeds=1']) == 2
    assert 'init_from' in capsys.readouterr().err and stamps(second) == before


def test_an_arm_may_also_be_what_the_others_start_from(pretrained, tmp_path):
    content = compare(tmp_path, pretrained, ('scratch', 'full'), 1)
    names = [row['name'] for row in content['arms']]
    assert names == ['full, to start from', 'scratch', 'full']


@pytest.mark.parametrize('arms', [('scratch',), ('scratch', 'scratch')])
def test_a_comparison_needs_different_arms(jaxtrain, tmp_path, arms):
    given = (f'--config={TINY}', f'--config.compare.arms={arms!r}')
    outcome = jaxtrain('compare', *given, f'--workdir={tmp_path}/out')
    assert outcome.code == 2 and 'two different arms' in outcome.err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('tolerance', [-0.1, float('nan')])
def test_a_wrong_tolerance_is_rejected_before_training(jaxtrain, tmp_path, tolerance):
    given = (f'--config={TINY}', f'--config.compare.tolerance={tolerance}')
    outcome = jaxtrain('compare', *given, f'--workdir={tmp_path}/out')
    assert outcome.code == 2 and 'config.compare.tolerance' in outcome.err
    assert not (tmp_path / 'out').exists()
