"""The run directory: files are replaced as a whole, one config, a log that fits its checkpoint."""

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

import jaxtrain
from jaxtrain.config import Config, base, changes
from jaxtrain.config.changes import Changes
from jaxtrain.config.keys import RESUMABLE
from jaxtrain.errors import UserError
from jaxtrain.runs.curves import draw_curves
from jaxtrain.runs.folder import RunDir, read_config
from jaxtrain.runs.metric import Metric, best_of, ranked
from jaxtrain.runs.metrics_log import NoLog, read_metrics
from jaxtrain.storage import read_json, write

CONFIG = base().to_dict()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / 'x.json'
    write(path, b'old and long')
    write(path, b'new')
    assert path.read_bytes() == b'new'
    assert names(tmp_path) == {'x.json'}


@pytest.mark.parametrize('interrupted', ['write_bytes', 'replace'])
def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, interrupted):
    path = tmp_path / 'x.json'
    write(path, b'the old content')
    write_bytes = Path.write_bytes

    def half(self, data):
        write_bytes(self, data[: len(data) // 2])
        raise KeyboardInterrupt

    def stop(*_):
        raise KeyboardInterrupt

    if interrupted == 'write_bytes':
        monkeypatch.setattr(Path, 'write_bytes', half)
    else:
        monkeypatch.setattr(os, 'replace', stop)
    with pytest.raises(KeyboardInterrupt):
        write(path, b'the new content')
    assert path.read_bytes() == b'the old content'


def test_interrupted_first_write_leaves_no_file_of_that_name(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', stop)
    with pytest.raises(KeyboardInterrupt):
        RunDir(tmp_path).write_json('result.json', {'steps': 1})
    assert RunDir(tmp_path).result() is None


def test_read_json(tmp_path):
    assert read_json(tmp_path / 'none.json') is None
    RunDir(tmp_path).write_json('a.json', {'b': (1, 2)})
    assert read_json(tmp_path / 'a.json') == {'b': [1, 2]}
    assert (tmp_path / 'a.json').read_text().endswith('}\n')


def test_claim_writes_the_config_with_its_provenance(tmp_path):
    RunDir(tmp_path).claim(CONFIG)
    stored = read_config(tmp_path)
    assert Config.from_json(stored['config']).to_dict() == CONFIG
    assert stored['versions']['numpy'] == np.__version__
    assert stored['streams'] == 2
    assert set(stored) == {'config', 'streams', 'versions', 'git'}


def changed(**changes) -> dict:
    return Config(CONFIG).replace(**changes).to_dict()


def test_claim_with_the_same_config_changes_nothing(tmp_path):
    RunDir(tmp_path).claim(CONFIG)
    before = (tmp_path / 'config.json').read_bytes()
    RunDir(tmp_path).claim(changed())
    assert (tmp_path / 'config.json').read_bytes() == before


def test_claim_with_another_config_names_the_keys(tmp_path):
    RunDir(tmp_path).claim(CONFIG)
    with pytest.raises(UserError) as caught:
        RunDir(tmp_path).claim(changed(optim__lr=0.5, groups=(('.*', 'one'),)))
    message = str(caught.value)
    assert 'optim.lr is 0.001 there and 0.5 here' in message
    assert "groups is [['.*', 'all']] there and [['.*', 'one']] here" in message
    assert 'seed' not in message and str(tmp_path) in message and '...' not in message


def test_claim_names_at_most_three_keys(tmp_path):
    RunDir(tmp_path).claim(CONFIG)
    with pytest.raises(UserError, match=r'batch_size .*; ema .*; keep .* \.\.\.;') as caught:
        RunDir(tmp_path).claim(changed(batch_size=1, ema=0.5, keep=9, seed=1, steps=3))
    assert 'steps is' not in str(caught.value)


def test_claim_with_an_additional_or_missing_key_names_it(tmp_path):
    RunDir(tmp_path).claim(CONFIG | {'model': {'name': 'cnn', 'norm': 'none'}})
    with pytest.raises(UserError, match=r"model\.norm is 'none' there and 'batch' here"):
        RunDir(tmp_path).claim(CONFIG)


def rewrite(folder: Path, change) -> None:
    """Change the content of config.json in place."""
    written = json.loads((folder / 'config.json').read_text())
    change(written)
    (folder / 'config.json').write_text(json.dumps(written))


def test_a_run_from_before_a_key_existed_has_its_default(tmp_path):
    RunDir(tmp_path).claim(CONFIG)
    rewrite(tmp_path, lambda written: [written['config'].pop(k) for k in ('mesh', 'frozen_norm')])
    RunDir(tmp_path).claim(CONFIG)
    assert read_config(tmp_path)['config']['mesh']['fsdp'] == 1
    with pytest.raises(UserError, match="frozen_norm is 'frozen' there and 'adapt' here"):
        RunDir(tmp_path).claim(changed(frozen_norm='adapt'))


def test_a_run_from_before_a_field_of_its_model_existed_has_its_default(tmp_path):
    RunDir(tmp_path).claim(CONFIG | {'model': {'name': 'cnn', 'widths': (4,)}})
    complete = {'name': 'cnn', 'widths': (4,), 'padding': 'SAME', 'norm': 'batch'}
    RunDir(tmp_path).claim(CONFIG | {'model': complete})
    with pytest.raises(UserError, match=r"model\.padding is 'SAME' there and 'VALID' here"):
        RunDir(tmp_path).claim(CONFIG | {'model': {**complete, 'padding': 'VALID'}})


def test_renamed_keys_and_values_of_a_run_are_translated(tmp_path, monkeypatch):
    RunDir(tmp_path).claim(changed(optim__lr=0.5, best_metric='accuracy'))

    def age(written) -> None:
        config = written['config']
        config['lr'] = config['optim'].pop('lr')
        config['best_metric'] = 'right'

    rewrite(tmp_path, age)
    before = (tmp_path / 'config.json').read_bytes()
    renamed = Changes(names={'lr': 'optim.lr'}, values={'best_metric': {'right': 'accuracy'}})
    monkeypatch.setattr(changes, 'CHANGES', renamed)
    config = read_config(tmp_path)['config']
    values = config['optim']['lr'], config['best_metric'], 'lr' in config
    assert values == (0.5, 'accuracy', False)
    RunDir(tmp_path).claim(changed(optim__lr=0.5, best_metric='accuracy'))
    assert (tmp_path / 'config.json').read_bytes() == before
    with pytest.raises(UserError, match=r'optim\.lr is 0\.5 there and 0\.001 here'):
        RunDir(tmp_path).claim(changed(best_metric='accuracy'))


def test_config_json_is_read_only_where_renamed_keys_are_translated():
    package = Path(jaxtrain.__file__).parent
    places = [
        str(path.relative_to(package))
        for path in package.rglob('*.py')
        for line in path.read_text().splitlines()
        if re.search(r"read_json\(.*'config\.json'", line)
    ]
    assert sorted(places) == [
        'runs/folder.py',  # `check` and `read_config`, which translate
        'runs/folder.py',
        'weights/import_weights.py',  # reads only the entry 'import'
    ]


def test_a_later_version_may_record_more_about_the_data(tmp_path):
    RunDir(tmp_path).claim(CONFIG, {'examples': 7})
    RunDir(tmp_path).claim(CONFIG, {'examples': 7, 'colours': 3})
    with pytest.raises(UserError, match='examples is 7 there and None here'):
        RunDir(tmp_path).claim(CONFIG, {'colours': 3})


def test_a_run_without_a_version_of_the_random_streams_has_the_first(tmp_path):
    RunDir(tmp_path).claim(CONFIG)
    rewrite(tmp_path, lambda written: written.pop('streams'))
    RunDir(tmp_path).claim(CONFIG)
    assert 'streams' not in read_config(tmp_path)  # and none is added


@pytest.mark.parametrize('version', [3, 0, '1'])
def test_a_run_with_an_unknown_version_of_the_random_streams(tmp_path, version):
    RunDir(tmp_path).claim(CONFIG)
    rewrite(tmp_path, lambda written: written.update(streams=version))
    with pytest.raises(UserError) as caught:
        RunDir(tmp_path, writes=False).check(CONFIG)
    message = str(caught.value)
    assert f'--workdir={tmp_path}' in message and f'version {version!r}' in message
    assert '\n' not in message and 'versions up to 2' in message


def test_claim_with_changed_data_names_the_change(tmp_path):
    RunDir(tmp_path).claim(CONFIG, {'classes': ('cat', 'dog'), 'examples': 7})
    RunDir(tmp_path).claim(CONFIG, {'classes': ('cat', 'dog'), 'examples': 7})
    before = (tmp_path / 'config.json').read_bytes()
    with pytest.raises(
        UserError, match='training data has changed.*examples is 7 there and 8 here'
    ):
        RunDir(tmp_path).claim(CONFIG, {'classes': ('cat', 'dog'), 'examples': 8})
    assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize('key', RESUMABLE)
def test_resumable_keys_may_differ(tmp_path, key):
    RunDir(tmp_path).claim(CONFIG)
    value = '/elsewhere' if key == 'data.dir' else 7
    RunDir(tmp_path).claim(changed(**{key.replace('.', '__'): value}))


def test_folder_that_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match='is not a run directory'):
        read_config(tmp_path)


def test_check_writable_makes_an_empty_folder(tmp_path):
    RunDir(tmp_path / 'a' / 'b').check_writable()
    assert names(tmp_path / 'a' / 'b') == set()


@pytest.mark.parametrize('below', ['', 'x', 'x/y'])
def test_unwritable_folder(tmp_path, below):
    (tmp_path / 'file').write_text('')
    path = tmp_path / 'file' / below
    with pytest.raises(UserError) as caught:
        RunDir(path).check_writable()
    assert str(caught.value).startswith(f'--workdir={path} cannot be written (')
    assert 'give another folder' in str(caught.value)


def test_table(tmp_path):
    RunDir(tmp_path).write_table('t.tsv', ('path', 'n'), [('a/b', 1), ('c', 2.5)])
    assert (tmp_path / 't.tsv').read_text() == 'path\tn\na/b\t1\nc\t2.5\n'


def test_npz(tmp_path):
    RunDir(tmp_path).write_npz('t.npz', {'loss': np.arange(3.0)})
    with np.load(tmp_path / 't.npz') as stored:
        np.testing.assert_array_equal(stored['loss'], [0, 1, 2])


def log(folder: Path, step: int, lines) -> None:
    """Open the log of a run that continues after `step`, and append lines of these splits."""
    opened = RunDir(folder).open_metrics(step)
    for number, split in lines:
        opened.append(number, split, {'loss': 1 / number})
    opened.close()


def test_log_writes_every_line_at_once(tmp_path):
    opened = RunDir(tmp_path).open_metrics(0)
    opened.append(5, 'train', {'loss': 0.5, 'accuracy': 1.0})
    expected = {'step': 5, 'split': 'train', 'loss': 0.5, 'accuracy': 1.0}
    assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == expected  # before it is closed
    opened.close()
    assert list((tmp_path / 'tensorboard').iterdir())


def test_resumed_log_drops_lines_after_its_step(tmp_path):
    log(tmp_path, 0, [(5, 'train'), (10, 'train'), (10, 'val'), (15, 'train'), (20, 'val')])
    log(tmp_path, 10, [(15, 'train')])
    kept = [(line['step'], line['split']) for line in read_metrics(tmp_path)]
    assert kept == [(5, 'train'), (10, 'train'), (10, 'val'), (15, 'train')]
    assert read_metrics(tmp_path)[0] == {'step': 5, 'split': 'train', 'loss': 0.2}


def test_resumed_log_drops_test_lines(tmp_path):
    log(tmp_path, 0, [(5, 'train'), (5, 'test'), (10, 'val')])
    log(tmp_path, 10, [])
    assert [line['split'] for line in read_metrics(tmp_path)] == ['train', 'val']


@pytest.mark.parametrize('truncated', ['{"step": 7, "spl', '{"step": 7, "split": "train"}'])
def test_line_without_its_newline_is_dropped(tmp_path, truncated):
    log(tmp_path, 0, [(5, 'train')])
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write(truncated)
    assert [line['step'] for line in read_metrics(tmp_path)] == [5]
    log(tmp_path, 9, [(10, 'train')])
    assert [line['step'] for line in read_metrics(tmp_path)] == [5, 10]


def test_folder_without_a_log_has_no_lines(tmp_path):
    assert read_metrics(tmp_path) == []


def test_process_that_does_not_write_writes_nothing(tmp_path):
    folder = RunDir(tmp_path / 'run', writes=False)
    folder.check_writable()
    folder.claim(CONFIG)
    folder.write_json('a.json', 1)
    folder.write_table('t.tsv', ('a',), [(1,)])
    folder.write_npz('t.npz', {'a': np.ones(1)})
    folder.write_curves(['loss'])
    opened = folder.open_metrics(0)
    opened.append(1, 'train', {'loss': 1.0})
    opened.close()
    assert isinstance(opened, NoLog)
    assert names(tmp_path) == set()


def test_process_that_does_not_write_still_checks_the_config(tmp_path):
    RunDir(tmp_path).claim(CONFIG)
    with pytest.raises(UserError, match='seed is 0 there and 1 here'):
        RunDir(tmp_path, writes=False).claim(changed(seed=1))


def test_curves_are_drawn(tmp_path, drawing):
    log(tmp_path, 0, [(step, split) for step in (1, 2, 3) for split in ('train', 'val')])

    def pixels() -> np.ndarray:
        with drawing():
            RunDir(tmp_path).write_curves(['loss'])
        data = (tmp_path / 'curves.png').read_bytes()
        assert data.startswith(b'\x89PNG\r\n\x1a\n')
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

    first = pixels()
    height, width, _ = first.shape
    assert height > 200 and width > 300
    colored = np.ptp(first.astype(int), axis=-1) > 60
    assert colored.sum() > 200  # lines, not only axes
    log(tmp_path, 3, [(4, 'train'), (4, 'val')])
    assert (pixels() != first).any()


@pytest.mark.parametrize('names', [('loss',), ('loss', 'accuracy')])
def test_curves_have_one_panel_per_metric(tmp_path, names):
    opened = RunDir(tmp_path).open_metrics(0)
    for step in (1, 2):
        opened.append(step, 'train', dict.fromkeys(names, 1 / step))
    opened.close()
    png = draw_curves(read_metrics(tmp_path), ('loss', 'accuracy'), 'runs/a')
    # Lines without a learning rate have no panel for it.
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[1] == pytest.approx(4.0 * 120 * len(names), abs=2)


def test_ranked_has_the_best_first_and_the_later_of_equal_ones():
    val = {5: {'loss': 1.0, 'f1': 0.2}, 10: {'loss': 1.0}, 15: {'loss': 2.0, 'f1': 0.2}, 20: {}}
    loss, f1 = Metric('loss', higher_is_better=False), Metric('f1', higher_is_better=True)
    assert ranked(val, loss, [5, 10, 15, 20, 25]) == [10, 5, 15]
    assert ranked(val, f1, [15, 10, 5]) == [15, 5]
    assert best_of(val, loss, [15, 5]) == 5 and best_of(val, f1, [20]) is None
