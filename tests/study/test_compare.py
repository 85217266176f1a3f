"""`jaxtrain compare`: arms side by side, the intervals of their differences, and a verdict."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtrain.cli import main
from jaxtrain.config import Config
from jaxtrain.data.sources.open import open_source
from jaxtrain.inspection.status import status
from jaxtrain.loop import train as loop
from jaxtrain.runs.folder import read_config
from jaxtrain.runs.metric import Metric
from jaxtrain.study.compare import by_example
from jaxtrain.study.pairs import pairs_of
from jaxtrain.study.stats import share_interval
from jaxtrain.tasks import tasks
from jaxtrain.tasks.task import LOSS
from tests.conftest import TINY

ARMS = ('scratch', 'linear', 'finetune')
ACCURACY = tasks.TASKS['classify'].metric('accuracy')
WORDS = ('compare', f'--config={TINY}', '--config.steps=10', '--config.compare.seeds=2')


@pytest.fixture(scope='module')
def compared(tmp_path_factory) -> Path:
    """A comparison with two seeds; batches.json beside it records the data of each run."""
    workdir = tmp_path_factory.mktemp('compare') / 'runs'
    seen, whole = [], loop.train_batches

    def note(source, bounds, order, reading):
        examples = source.fetch(np.arange(len(source)))
        digest = hashlib.sha256(examples['image'].tobytes() + examples['label'].tobytes())
        seen.append([len(source), digest.hexdigest(), order.batch_size, order.seed])
        return whole(source, bounds, order, reading)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'train_batches', note)
        assert main([*WORDS, f'--workdir={workdir}']) == 0
    (workdir.parent / 'batches.json').write_text(json.dumps(seen))
    return workdir


def report(workdir: Path) -> dict:
    return json.loads((workdir / 'compare.json').read_text())


def read_run_config(run: Path) -> Config:
    return Config.from_json(read_config(run)['config'])


def scores(workdir: Path, arm: str) -> np.ndarray:
    """Accuracy by seed and test example, from the files of the runs."""
    runs = sorted((workdir / arm).iterdir())
    return np.stack([np.load(run / 'test.npz')['accuracy'] for run in runs])


def tables(workdir: Path) -> list[list[list[str]]]:
    """The cells of the tables in report.md, by row, without the header."""
    text = (workdir / 'report.md').read_text()
    matches = re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines()[2:]]
        for table in matches
    ]


def test_a_row_for_each_arm(compared):
    rows = {row['name']: row for row in report(compared)['arms']}
    assert list(rows) == ['full', *ARMS]
    assert [row['seeds'] for row in rows.values()] == [1, 2, 2, 2]
    # 3x3 convolutions to 8 and 16 channels, a scale and a bias for each, and 10 outputs.
    head = 16 * 10 + 10
    total = 9 * 8 + 9 * 8 * 16 + 2 * (8 + 16) + head
    assert all(row['params_total'] == total for row in rows.values())
    trained = {name: row['params_trainable'] for name, row in rows.items()}
    assert trained == {'full': total, 'scratch': total, 'linear': head, 'finetune': total}
    assert all(0 <= r['opt_state_bytes'] - 8 * r['params_trainable'] <= 64 for r in rows.values())
    assert all(row['examples_seen'] == 10 * 32 for row in rows.values())
    inits = {name: row['init'] for name, row in rows.items()}
    assert inits == {
        'full': 'random',
        'scratch': 'random',
        'linear': 'full (best)',
        'finetune': 'full (best)',
    }
    # Frozen layers have no backward pass.
    assert 0 < rows['linear']['flops'] < 0.6 * rows['scratch']['flops']


def test_costs_and_accuracy_come_from_the_runs(compared):
    for row in report(compared)['arms'][1:]:
        name = row['name']
        runs = sorted((compared / name).iterdir())
        assert [run.name for run in runs] == ['seed_0', 'seed_1']
        results = [json.loads((run / 'result.json').read_text()) for run in runs]
        assert row['flops'] == 10 * results[0]['flops_per_step']
        assert row['seconds'] == pytest.approx(
            np.mean([sum(r['seconds'].values()) for r in results])
        )
        tested = [r['metrics']['test']['accuracy'] for r in results]
        assert row['by_seed'] == pytest.approx(tested) and tested[0] != tested[1]
        expected = share_interval(scores(compared, name))
        numbers = {'mean': expected.mean, 'low': expected.low, 'high': expected.high}
        assert row['accuracy'] == numbers


def test_all_arms_train_on_the_same_data_with_paired_seeds(compared):
    full, *arms = json.loads((compared.parent / 'batches.json').read_text())
    assert full[0] == 897 and len(arms) == 6
    seeds = [seed for *_, seed in (full, *arms)]
    # Pretraining and the arms of each seed have streams of their own.
    assert seeds[1:4] == seeds[1:2] * 3 and seeds[4:] == seeds[4:5] * 3 and len(set(seeds)) == 3
    assert len({tuple(what) for *what, _ in arms}) == 1
    assert arms[0][0] == 50 and arms[0][2] == 32


def test_all_pairs_have_intervals_of_the_paired_scores(compared):
    pairs = report(compared)['pairs']
    assert [(p['first'], p['second']) for p in pairs] == [
        (later, earlier) for earlier, later in combinations(ARMS, 2)
    ]
    for pair in pairs:
        difference = scores(compared, pair['first']) - scores(compared, pair['second'])
        assert difference.shape == (2, 600) and difference.any()
    expected = pairs_of({arm: scores(compared, arm) for arm in ARMS}, ACCURACY)
    assert pairs == json.loads(json.dumps([pair.to_json() for pair in expected]))


def test_the_verdict_and_its_rule_are_recorded(compared):
    content, text = report(compared), (compared / 'report.md').read_text()
    assert content['choice'] in ARMS and content['decided'] in (True, False)
    assert content['tolerance'] == 0.01 and 'within 1.0 points of the best' in text


def test_the_majority_and_chance_stand_beside_the_arms(compared):
    labels = open_source(
        read_run_config(compared / 'scratch' / 'seed_0').data, 'test', 'config.data.test'
    ).labels
    share = np.bincount(labels).max() / 600
    assert report(compared)['baselines'] == {'majority': pytest.approx(share), 'chance': 0.1}
    names = {row[0]: row[-1] for row in tables(compared)[0]}
    assert (names['majority'], names['chance']) == (f'{100 * share:.1f}%', '10.0%')


def test_the_page_has_the_table_the_pairs_and_the_verdict(compared):
    content = report(compared)
    text = (compared / 'report.md').read_text()
    assert f'**{content["verdict"]}**' in text and '2 paired seeds' in text
    arms, pairs = tables(compared)
    names = [row['name'] for row in content['arms']]
    assert [row[0] for row in arms] == [*names, 'majority', 'chance']
    for cells, row in zip(arms, content['arms'], strict=False):
        assert cells[1] == row['init']
        assert cells[2:4] == [f'{row["params_trainable"]:,}', f'{row["params_total"]:,}']
        mean, low, high = (100 * row['accuracy'][k] for k in ('mean', 'low', 'high'))
        assert cells[-2:] == [str(row['seeds']), f'{mean:.1f}% [{low:.1f}, {high:.1f}]']
    assert [row[0] for row in pairs] == [f'{p["first"]} - {p["second"]}' for p in content['pairs']]
    for cells, pair in zip(pairs, content['pairs'], strict=True):
        assert cells[1].startswith(f'{100 * pair["difference"]["mean"]:+.1f} [')
        assert float(cells[2].strip('< ')) == pytest.approx(pair['p'], rel=0.1, abs=1e-4)
        assert cells[3] == ('yes' if pair['differs'] else 'no')
    assert '](compare.png)' in text


def test_the_page_shows_small_costs_with_enough_digits(compared):
    costs = {row[0]: row[6] for row in tables(compared)[0]}
    assert costs['linear'] != costs['scratch']


def test_the_figure_is_drawn(compared):
    with Image.open(compared / 'compare.png') as picture:
        pixels = np.asarray(picture.convert('RGB')).astype(int)
    upper, lower = pixels[: len(pixels) * 4 // 5], pixels[len(pixels) * 4 // 5 :]
    # The upper part has a colour for each arm, and the lower part has the images in grey.
    for colour in ((0x4C, 0x78, 0xA8), (0xE4, 0x57, 0x56), (0x54, 0xA2, 0x4B)):
        assert (upper == colour).all(-1).sum() > 20
    assert ((lower > 60) & (lower < 200)).mean() > 0.02


def test_one_seed_gives_no_verdict(compared, jaxtrain, tmp_path):
    shutil.copytree(compared, tmp_path / 'runs')
    for config in (tmp_path / 'runs').glob('*/*/config.json'):
        config.write_text(config.read_text().replace(str(compared), str(tmp_path / 'runs')))
    words = [*WORDS, '--config.compare.seeds=1', f'--workdir={tmp_path}/runs']
    outcome = jaxtrain(*words)
    assert outcome.code == 0, outcome.err
    content = report(tmp_path / 'runs')
    assert content['choice'] is None and not content['decided']
    assert 'One seed gives no verdict on the arms' in content['verdict']
    assert {pair['differs'] for pair in content['pairs']} == {None}
    # The second seeds are there, but not asked for.
    left = 'Not part of this comparison: finetune/seed_1, linear/seed_1, scratch/seed_1.'
    assert left in outcome.out and left in (tmp_path / 'runs' / 'report.md').read_text()


def stamps(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}


def test_an_interrupted_comparison_resumes(compared, jaxtrain, tmp_path):
    workdir = tmp_path / 'runs'
    shutil.copytree(compared, workdir)
    # The runs record the path of their checkpoint, which is adapted in the copy.
    for config in workdir.glob('*/*/config.json'):
        config.write_text(config.read_text().replace(str(compared), str(workdir)))
    (workdir / 'finetune' / 'seed_1' / 'result.json').unlink()
    shutil.rmtree(workdir / 'linear')
    (workdir / 'compare.json').unlink()
    before = stamps(workdir)

    outcome = jaxtrain(*WORDS, f'--workdir={workdir}')
    assert outcome.code == 0, outcome.err
    done = dict(re.findall(r'^(\w+(?: seed \d)?) .*  (done before|[\d.]+ s)$', outcome.out, re.M))
    assert [name for name, spent in done.items() if spent == 'done before'] == [
        'full', 'scratch seed 0', 'finetune seed 0', 'scratch seed 1',
    ]  # fmt: skip
    touched = {p for p, stamp in stamps(workdir).items() if before.get(p) != stamp}
    assert {p.relative_to(workdir).parts[:2] for p in touched} == {
        ('linear', 'seed_0'),
        ('linear', 'seed_1'),
        ('finetune', 'seed_1'),
        ('compare.json',),
        ('compare.png',),
        ('report.md',),
    }

    def timeless(folder: Path) -> dict:
        content = report(folder)
        return {**content, 'arms': [{**row, 'seconds': 0} for row in content['arms']]}

    assert timeless(workdir) == timeless(compared)


def test_a_given_full_run_is_not_trained_again(pretrained, jaxtrain, tmp_path):
    before = stamps(pretrained)
    words = ["--config.compare.arms=('scratch','linear')", '--config.compare.seeds=1']
    outcome = jaxtrain(*WORDS, *words, f'--workdir={tmp_path}', f'--full={pretrained}')
    assert outcome.code == 0, outcome.err
    assert stamps(pretrained) == before
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {'scratch', 'linear'}
    content = report(tmp_path)
    assert [row['name'] for row in content['arms']] == ['full', 'scratch', 'linear']
    assert content['arms'][0]['examples_seen'] == 60 * 32
    plan = json.loads((tmp_path / 'linear' / 'seed_0' / 'restore.json').read_text())
    assert plan['checkpoint'].startswith(str(pretrained))
    assert not (tmp_path / 'scratch' / 'seed_0' / 'restore.json').exists()


@pytest.mark.parametrize('split', ['val', 'test'])
def test_a_comparison_requires_val_and_test(split, pretrained, jaxtrain, tmp_path):
    words = [f'--config.data.{split}=', f'--full={pretrained}']
    words += ["--config.compare.arms=('scratch','linear')", '--config.compare.seeds=1']
    outcome = jaxtrain(*WORDS, *words, f'--workdir={tmp_path}')
    assert outcome.code == 2 and f'config.data.{split}' in outcome.err


def test_an_error_in_an_arm_is_reported_before_training(jaxtrain, tmp_path):
    source = (
        Path(TINY)
        .read_text()
        .replace("'finetune':\n        c.optim.lr_mult", "'finetune':\n        c.optim.lr_mul")
    )
    path = tmp_path / 'c.py'
    path.write_text(source)
    outcome = jaxtrain('compare', f'--config={path}', f'--workdir={tmp_path}/out')
    assert outcome.code == 2 and "'lr_mult'" in outcome.err
    path.write_text(Path(TINY).read_text().replace("('backbone/.*', 0.1)", "('backbon/.*', 0.1)"))
    outcome = jaxtrain('compare', f'--config={path}', f'--workdir={tmp_path}/out')
    assert outcome.code == 2 and "'backbon/.*'" in outcome.err
    assert not list((tmp_path / 'out').iterdir())


def test_arms_with_different_test_sets_are_rejected(jaxtrain, tmp_path):
    path = tmp_path / 'c.py'
    more = "'linear':\n        c.data.test = 'val'\n"
    path.write_text(Path(TINY).read_text().replace("'linear':\n", more))
    outcome = jaxtrain('compare', f'--config={path}', f'--workdir={tmp_path}/out')
    assert outcome.code == 2
    assert "scratch is tested on ('digits', 'test') and linear on ('digits', 'val')" in outcome.err


ERROR = Metric('error', higher_is_better=False)


def fake(patch: pytest.MonkeyPatch, metric: Metric) -> None:
    """Replaces the task classify by one whose main metric is the error rate."""
    whole = tasks.TASKS['classify']

    def rows(outputs, batch):
        values = whole.rows(outputs, batch)
        return {'loss': values['loss'], 'error': 1 - values['accuracy']}

    task = replace(whole, rows=rows, metrics=(LOSS, metric), main='error')
    patch.setitem(tasks.TASKS, 'classify', task)


ARMS_ALONE = ('--config.compare.pretrain=', "--config.compare.arms=('scratch','full')")


def test_a_task_whose_main_metric_is_to_be_minimised(monkeypatch, capsys, tmp_path):
    """The checkpoints with the lowest val metric are selected, and the report names the metric."""
    fake(monkeypatch, ERROR)
    words = ['--config.steps=12', '--config.eval_every=2', '--config.compare.seeds=1']
    words += ['--config.optim.lr=0.03', '--config.keep=9']  # keeps all checkpoints
    assert main(['compare', f'--config={TINY}', *ARMS_ALONE, *words, f'--workdir={tmp_path}']) == 0
    for arm in ('scratch', 'full'):
        run = tmp_path / arm / 'seed_0'
        result = json.loads((run / 'result.json').read_text())
        logged = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
        val = {line['step']: line['error'] for line in logged if line['split'] == 'val'}
        lowest = min(val.values())
        assert lowest < max(val.values())
        assert result['best_step'] == max(step for step in val if val[step] == lowest)
        assert result['metrics']['val']['error'] == lowest
        assert status(str(run)).best == result['best_step']
        assert json.loads((run / 'config.json').read_text())['config']['best_metric'] == 'error'
    content = report(tmp_path)
    assert [row['error']['mean'] for row in content['arms']] == pytest.approx(
        [
            json.loads((tmp_path / arm / 'seed_0' / 'result.json').read_text())['metrics']['test'][
                'error'
            ]
            for arm in ('scratch', 'full')
        ]
    )
    page, printed = (tmp_path / 'report.md').read_text(), capsys.readouterr().out
    assert 'test error (95%)' in page and '| test error (95%) |' in page
    assert '![error and cost]' in page and 'test error (95%)' in printed
    assert re.search(r'^scratch seed 0 +val error 0\.\d{3}  ', printed, re.MULTILINE)
    assert 'accuracy' not in page + printed and 'points' not in page + printed
    assert content['baselines'] == {}
    arms, _ = tables(tmp_path)
    for cells, row in zip(arms, content['arms'], strict=True):
        mean, low, high = (row['error'][key] for key in ('mean', 'low', 'high'))
        assert cells[-1] == f'{mean:.4g} [{low:.4g}, {high:.4g}]'


def test_a_main_metric_that_is_not_a_mean_is_rejected(monkeypatch, jaxtrain, tmp_path):
    fake(monkeypatch, replace(ERROR, is_mean=False))
    outcome = jaxtrain('compare', f'--config={TINY}', *ARMS_ALONE, f'--workdir={tmp_path}/out')
    assert outcome.code == 2 and 'its main metric error is not a mean' in outcome.err
    assert not list((tmp_path / 'out').iterdir())


def test_arms_with_different_main_metrics_are_rejected(jaxtrain, tmp_path):
    path = tmp_path / 'c.py'
    more = "'linear':\n        c.task.name = 'lm'\n"
    path.write_text(Path(TINY).read_text().replace("'linear':\n", more))
    outcome = jaxtrain('compare', f'--config={path}', f'--workdir={tmp_path}/out')
    assert outcome.code == 2
    assert 'main metric of scratch is accuracy and that of linear is loss' in outcome.err


def test_examples_count_by_their_weights():
    rows = {'loss': np.array([1.0, 2.0, 4.0], np.float32), 'weight': np.array([4.0, 4.0, 1.0])}
    scores = by_example(rows, 'loss')
    assert scores.mean() == pytest.approx((4 + 8 + 4) / 9)
    # The last example has a smaller weight, so it contributes less to the mean.
    assert scores[2] - scores.mean() == pytest.approx((4 - 16 / 9) / 3)
    alike = {'loss': rows['loss'], 'weight': np.full(3, 7.0)}
    np.testing.assert_allclose(by_example(alike, 'loss'), rows['loss'])
    assert by_example({'accuracy': rows['loss']}, 'accuracy') is rows['loss']
