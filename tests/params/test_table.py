"""The parameter table, in full and shortened."""

from jaxtrain.params.partition import flatten
from jaxtrain.params.table import COLUMNS, Row, Settings, short_text, table
from jaxtrain.terminal import SHORT
from tests.params.test_partition import HEAD_ONLY, PARAMS, partition


def test_table():
    part = partition(HEAD_ONLY)
    origin = dict.fromkeys(part.groups, 'load') | {'head/logits/bias': 'init'}
    shardings = dict.fromkeys(part.groups, 'replicated') | {'head/logits/kernel': 'fsdp tensor'}
    head = 'head/logits/kernel'
    lines = table(PARAMS, Settings(part.groups, {head: 0.5}, {head: 0.01}, shardings, origin))
    by_path = {row.path: dict(zip(COLUMNS, row, strict=True)) for row in lines}
    assert list(by_path) == list(flatten(PARAMS))
    assert by_path['backbone/conv_0/kernel'] == {
        'path': 'backbone/conv_0/kernel', 'shape': '3x3x2x3', 'dtype': 'float64',
        'group': 'frozen', 'lr_mult': 0.0, 'decay': 0.0, 'sharding': 'replicated',
        'bytes': 432, 'from': 'load',
    }  # fmt: skip
    assert by_path['head/logits/kernel'] == {
        'path': 'head/logits/kernel', 'shape': '3x5', 'dtype': 'float32',
        'group': 'head', 'lr_mult': 0.5, 'decay': 0.01, 'sharding': 'fsdp tensor',
        'bytes': 60, 'from': 'load',
    }  # fmt: skip
    assert by_path['head/logits/bias']['shape'] == 'scalar'
    assert by_path['head/logits/bias']['from'] == 'init'


def rows(modules: int) -> list[Row]:
    made = []
    for i in range(modules):
        path = f'backbone/conv_{i}'
        made.append(Row(f'{path}/kernel', '3x3', 'f4', 'frozen', 0.0, 0.0, 'rep', 1000, 'load'))
        made.append(Row(f'{path}/bias', '3', 'f4', 'frozen', 0.0, 0.0, 'rep', 24, 'load'))
    return [*made, Row('head/logits/kernel', '3x2', 'f4', 'head', 1.0, 0.1, 'rep', 8, 'init')]


def test_few_parameters_are_listed_one_by_one():
    lines = short_text(rows(SHORT // 2 - 1)).splitlines()
    assert len(lines) == 1 + (SHORT - 1)
    assert lines[0].split() == ['path', 'shape', 'group', 'lr_mult', 'decay', 'from']
    assert lines[1].split() == ['backbone/conv_0/kernel', '3x3', 'frozen', '0', '0', 'load']
    assert lines[-1].split() == ['head/logits/kernel', '3x2', 'head', '1', '0.1', 'init']


def test_many_parameters_are_summed_by_module():
    lines = short_text(rows(SHORT)).splitlines()
    assert lines[0].split() == ['module', 'leaves', 'bytes', 'group', 'lr_mult', 'decay', 'from']
    assert len(lines) == 1 + SHORT + 1
    assert lines[1].split() == ['backbone/conv_0', '2', '1,024', 'frozen', '0', '0', 'load']
    assert lines[-1].split() == ['head/logits', '1', '8', 'head', '1', '0.1', 'init']


def test_parameters_of_a_module_with_different_settings_are_separate_lines():
    many = [row._replace(decay=i % 2 * 0.1) for i, row in enumerate(rows(SHORT))]
    lines = short_text(many).splitlines()
    assert len(lines) == 1 + 2 * SHORT + 1
    assert lines[1].split()[:3] == ['backbone/conv_0', '1', '1,000']
