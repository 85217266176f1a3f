"""The config: closed, typed and documented; every error gives its place and the fix."""

import ast
import json
import re
from pathlib import Path

import pytest

import jaxtrain
from jaxtrain.config import Config, base, keys
from jaxtrain.config.closed import flatten, unflatten
from jaxtrain.config.files import load
from jaxtrain.errors import UserError, nearest
from tests.conftest import TINY

PACKAGE = Path(jaxtrain.__file__).parent
HEAD = 'from jaxtrain.config import base\ndef get_config(variant=""):\n    c = base()\n'


def fault(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    """Writes a config file whose fourth line is `line`, and returns its path."""

    def write(line: str, head: str = HEAD) -> str:
        path = tmp_path / 'c.py'
        path.write_text(f'{head}    {line}\n    return c\n')
        return str(path)

    return write


# Loading of files and overrides


def test_base_is_closed():
    c = base()
    with pytest.raises(AttributeError):
        c.optim.learning_rate = 1.0
    with pytest.raises(AttributeError):
        c.colour = 'red'
    with pytest.raises(TypeError):
        c.batch_size = 'many'


def test_variants_and_overrides():
    cfg = load(TINY + ':linear', ['--config.optim.lr=0.25', '--config.batch_size=8'])
    assert cfg.regime == 'finetune'
    assert cfg.groups == (('backbone/.*', 'frozen'), ('head/.*', 'head'))
    assert (cfg.optim.lr, cfg.batch_size, cfg.data.limit) == (0.25, 8, 5)


def test_a_bare_value_overrides_a_rule_list():
    assert load(TINY, ['--config.optim.clip_norm=(1.0,)']).optim.clip_norm == (1.0,)
    assert load(TINY, ['--config.optim.clip_norm=1.0']).optim.clip_norm == (1.0,)


def test_a_missing_file():
    assert "there is no file 'none.py'" in fault(load, 'none.py:a', [])


def test_an_unknown_variant_suggests_the_nearest():
    message = fault(load, TINY + ':scrach', [])
    assert "no variant 'scrach'" in message and "'scratch'" in message
    assert 'full, scratch, linear, finetune' in message


def test_an_unknown_key_in_a_file_reports_the_line_and_the_nearest_key(write):
    path = write('c.batchsize = 8')
    message = fault(load, path, [])
    assert message.startswith(f'{path}:4: ')
    assert "'batchsize'" in message and "'batch_size'" in message


def test_an_unknown_key_in_a_section_reports_the_line_and_the_nearest_key(write):
    message = fault(load, write('c.optim.wieght_decay = 1.0'), [])
    assert ':4: ' in message
    assert "'wieght_decay'" in message and "'weight_decay'" in message


def test_a_wrong_type_in_a_file_reports_the_line(write):
    path = write("c.batch_size = 'many'")
    message = fault(load, path, [])
    assert message.startswith(f'{path}:4: TypeError')
    assert 'int' in message


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('c.seed = 1 // 0', 'ZeroDivisionError: integer division or modulo by zero'),
        ('c.seed = (1', 'SyntaxError'),
        ('import no_such_module', 'ModuleNotFoundError: No module named'),
        ("open('/no/such/file')", 'No such file'),
        ("raise ValueError('first\\nsecond')", 'ValueError: first'),
        ("import json; json.loads('x')", 'JSONDecodeError: Expecting'),
    ],
)
def test_an_error_inside_a_file_reports_the_line(write, line, words):
    path = write(line)
    message = fault(load, path, [])
    assert message.startswith(f'{path}:4: ')
    assert words in message


def test_a_missing_return(tmp_path):
    path = tmp_path / 'c.py'
    path.write_text(HEAD)
    assert 'get_config' in fault(load, str(path), [])


def test_the_keys_of_a_file_without_base_are_checked(write):
    head = 'from ml_collections import ConfigDict\n\ndef get_config():\n    c = ConfigDict()\n'
    assert 'start from jaxtrain.config.base()' in fault(load, write('c.seed = 1', head), [])
    message = fault(load, write('c.sead = 1', head), [])
    assert 'config.sead ' in message and "'seed'" in message


@pytest.mark.parametrize(
    ('word', 'parts'),
    [
        ('--config.optim.lrr=1', ['--config.optim.lrr', "'optim.lr"]),
        ('--config.batchsize=8', ['--config.batchsize', "'batch_size'"]),
        ('--config.seed', ['--config.seed has no value', '--config.seed=VALUE']),
    ],
)
def test_malformed_overrides(word, parts):
    message = fault(load, TINY, [word])
    assert all(part in message for part in parts), message


def test_an_emptied_init_from_makes_a_run_from_scratch():
    start = '--config.init_from='
    cfg = load(f'{TINY}:finetune', [start])
    assert (cfg.regime, cfg.init_from) == ('scratch', '')
    assert cfg.given == {'init_from'}
    # What the command line sets stays, and so does the regime of all other configs.
    assert load(f'{TINY}:finetune', [start, '--config.regime=finetune']).regime == 'finetune'
    assert load(f'{TINY}:finetune', ['--config.init_from=other']).regime == 'finetune'
    assert load(f'{TINY}:full', [start]).regime == 'full'


def test_a_wrong_type_in_an_override_reports_the_key_and_its_type():
    message = fault(load, TINY, ['--config.batch_size=many'])
    assert 'many' in message
    assert 'config.batch_size is of type int, like 128' in message


def test_overrides_add_keys_to_open_sections():
    words = ['--config.model.norm=none', '--config.model.dropout=0.5', '--config.optim.args.b2=0.9']
    cfg = load(TINY, words)
    assert (cfg.model.norm, cfg.model.dropout, cfg.optim.args.b2) == ('none', 0.5, 0.9)
    assert dict(cfg.model.items()) == {
        'name': 'cnn', 'widths': (8, 16), 'norm': 'none', 'dropout': 0.5,
    }  # fmt: skip


def test_files_add_keys_to_open_sections(write):
    assert load(write("c.model.padding = 'VALID'"), []).model.padding == 'VALID'


# Keys that are left open


def test_preprocessing_is_left_open_until_it_is_set(write):
    assert load(write('pass'), []).data.crop is None
    assert load(write('c.data.crop = 0.0'), []).data.crop == 0.0
    assert load(write('c.data.image_size = ()'), []).data.image_size == ()
    assert load(write('c.data.crop = 1'), []).data.crop == 1.0  # as for any float


@pytest.mark.parametrize(
    ('word', 'value'),
    [
        ('crop=0.0', 0.0),
        ('crop=0.875', 0.875),
        ('crop=None', None),
        ('image_size=()', ()),
        ('image_size=(8,9)', (8, 9)),
        ('image_size=None', None),
        ('interpolation=nearest', 'nearest'),
        ('interpolation=None', None),
        ('mean=0.25', (0.25,)),
    ],
)
@pytest.mark.parametrize(
    'line', ['pass', "c.data.crop, c.data.image_size, c.data.interpolation = 0.5, (4, 4), 'auto'"]
)
def test_overrides_set_preprocessing_or_leave_it_open(write, line, word, value):
    name = word.split('=')[0]
    assert getattr(load(write(line), [f'--config.data.{word}']).data, name) == value


def test_the_last_override_of_a_key_counts():
    words = ['--config.data.crop=None', '--config.data.crop=0.5']
    assert load(TINY, words).data.crop == 0.5
    assert load(TINY, words[::-1]).data.crop is None


def test_only_preprocessing_can_be_left_open(write):
    message = fault(load, write('c.optim.lr = None'), [])
    assert 'config.optim.lr=None' in message and 'image_size' in message and '0.001' in message
    assert 'could not convert' in fault(load, TINY, ['--config.optim.lr=None'])


def test_a_wrong_type_for_a_key_that_is_left_open(write):
    path = write("c.data.crop = 'half'")
    message = fault(load, path, [])
    assert message.startswith(f'{path}:4: TypeError')
    assert "'crop'" in message and 'float' in message
    message = fault(load, TINY, ['--config.data.crop=half'])
    assert 'config.data.crop is of type float, like 0.0, or None' in message


@pytest.mark.parametrize(
    'line',
    [
        'c.data.scale = 0.0',
        'c.data.mean = ()',
        'c.data.std = []',
        "c.data.interpolation = ''",
        "c.data.channel_order = ''",
    ],
)
def test_earlier_values_still_leave_a_key_open(write, line):
    assert load(write(line), []).to_dict() == base().to_dict()


# The read-only Config


def test_a_key_that_does_not_exist_cannot_be_read():
    cfg = Config(base().to_dict())
    with pytest.raises(AttributeError, match=r'config\.optim\.learning_rate'):
        _ = cfg.optim.learning_rate
    assert not hasattr(cfg, 'get')
    assert not hasattr(cfg.optim, 'get')


def test_a_changed_key_that_nothing_reads_is_an_error():
    cfg = load(TINY, ['--config.data.threads=3'])
    for path, _ in flatten(cfg.to_dict()):
        if path != 'data.threads':
            read(cfg, path)
    assert 'config.data.threads=3 was set, but nothing in this run reads it' in fault(
        cfg.require_read
    )
    cfg.require_read(but=('data.',))
    assert cfg.data.threads == 3
    cfg.require_read()


def test_an_unread_key_of_an_open_section_is_an_error():
    cfg = Config(base().to_dict() | {'model': {'name': 'cnn', 'colour': 'red'}})
    assert "config.model.colour='red'" in fault(cfg.require_read)
    dict(cfg.model.items())
    cfg.require_read()


def test_unchanged_keys_need_not_be_read():
    Config(base().to_dict()).require_read()


def read(cfg, path: str) -> None:
    for name in path.split('.'):
        cfg = getattr(cfg, name)


def test_choose():
    cfg = Config(base().to_dict())
    assert cfg.optim.choose('name', ('sgd', 'adamw')) == 'adamw'
    message = fault(cfg.optim.choose, 'name', ('sgd', 'adam'))
    assert message == (
        f"config.optim.name='adamw' is not known{nearest('adamw', ('adam',))}; "
        'choose from adam, sgd'
    )


def test_replace_changes_a_copy():
    cfg = Config(base().to_dict())
    changed = cfg.replace(data__limit=5, seed=3)
    assert (changed.data.limit, changed.seed) == (5, 3)
    assert (cfg.data.limit, cfg.seed) == (0, 0)
    expected = base()
    expected.data.limit, expected.seed = 5, 3
    assert changed.to_dict() == expected.to_dict()
    with pytest.raises(KeyError, match=r'data\.limits'):
        cfg.replace(data__limits=5)


def test_replace_forgets_what_was_read():
    cfg = Config(base().to_dict()).replace(seed=3)
    assert cfg.seed == 3
    cfg.require_read()
    assert 'config.seed=3' in fault(cfg.replace(data__limit=0).require_read)


def test_from_json_restores_tuples():
    tree = load(TINY + ':linear', ['--config.model.hidden=(4, 5)']).to_dict()
    stored = json.loads(json.dumps(tree))
    assert stored['groups'] == [['backbone/.*', 'frozen'], ['head/.*', 'head']]
    assert Config.from_json(stored).to_dict() == tree


def test_flatten_and_unflatten_are_inverse():
    tree = load(TINY, ['--config.optim.args.b1=0.5']).to_dict()
    flat = dict(flatten(tree))
    assert flat['optim.args.b1'] == 0.5 and flat['data.name'] == 'digits'
    assert unflatten(flat) == tree
    assert unflatten(dict(flatten(base().to_dict()))) == base().to_dict()


def test_nearest():
    assert nearest('adm', ('sgd', 'adam')) == " (did you mean 'adam'?)"
    assert nearest('zzz', ('sgd', 'adam')) == ''


def test_resumable_keys_exist():
    assert set(keys.RESUMABLE) <= set(dict(flatten(base().to_dict())))


# The source code


def test_every_key_is_documented_by_a_comment_above_it():
    lines = Path(keys.__file__).read_text().splitlines()
    key = r"    (c\.[\w.]+ = (?!ConfigDict)|'\w+': )"
    numbers = [i for i, line in enumerate(lines) if re.match(key, line)]
    assert len(numbers) == len(dict(flatten(base().to_dict())))
    for number in numbers:
        key, above = lines[number].split()[0], number - 1
        # Neighbouring keys share a comment, and a section shares it with its first key.
        section = f'    {key.rpartition(".")[0]} = ConfigDict()'
        while above in numbers or lines[above] == section:
            above -= 1
        assert lines[above].startswith('    # '), f'no comment above {key}'


def test_no_default_for_a_config_key_outside_config():
    """`cfg.get(key, default)` and `getattr(cfg, key, default)` would hide a misspelt key."""
    calls = []
    for path in sorted(PACKAGE.rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called, args = node.func, [ast.unparse(arg) for arg in node.args]
            if isinstance(called, ast.Attribute) and called.attr == 'get':
                calls.append((path.name, ast.unparse(called.value)))
            if isinstance(called, ast.Name) and called.id == 'getattr' and len(args) == 3:
                calls.append((path.name, args[0]))
    named = [call for call in calls if re.search(r'\b(c|cfg|config)\b', call[1])]
    assert calls, 'the search must find the calls on plain dicts'
    assert named == []
