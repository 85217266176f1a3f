"""What a run prints: plain aligned lines, and nothing else without a terminal."""

import re

import pytest

from jaxtrain.terminal import Terminal, number, predictions, table

ROW = {'step': '10', 'loss': '0.5', 'val accuracy': '0.75'}


def use(terminal: Terminal) -> None:
    with terminal:
        terminal.say('hello [bold] 12')
        for step in range(1, 6):
            terminal.advance(step, 5)
            terminal.row(ROW)
        terminal.say('a' * 500)


def test_no_control_characters_without_a_terminal(capsys):
    use(Terminal())
    out, err = capsys.readouterr()
    assert err == ''
    assert not re.search(r'[^\n -~]', out)
    assert out.splitlines()[0] == 'hello [bold] 12'  # no markup
    assert out.splitlines()[-1] == 'a' * 500  # no wrapping
    assert len(out.splitlines()) == 1 + 1 + 5 + 1


def test_progress_bar_and_style_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    monkeypatch.setenv('TERM', 'xterm')
    use(Terminal(title='training'))
    out = capsys.readouterr().out
    assert '\x1b[1m' in out and 'training' in out and '5/5' in out


def test_quiet_prints_nothing(capsys):
    use(Terminal(quiet=True))
    assert capsys.readouterr() == ('', '')


def test_quiet_keeps_the_progress_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    monkeypatch.setenv('TERM', 'xterm')
    use(Terminal(quiet=True))
    out = capsys.readouterr().out
    assert '5/5' in out and 'hello' not in out and '0.75' not in out


@pytest.mark.parametrize('colour', ['', '1'])
def test_silent_prints_nothing_at_all(capsys, monkeypatch, colour):
    if colour:
        monkeypatch.setenv('FORCE_COLOR', colour)
        monkeypatch.setenv('TERM', 'xterm')
    use(Terminal(silent=True))
    assert capsys.readouterr() == ('', '')


def test_growing_table_has_one_header_and_aligned_columns(capsys):
    terminal = Terminal()
    terminal.row(ROW)
    terminal.row({'step': '1000', 'loss': '0.25', 'val accuracy': '1'})
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split('  ')[-1].strip() == 'val accuracy'
    assert len(lines) == 2
    assert {len(line) for line in (header, *lines)} == {9 + 2 + 9 + 2 + len('val accuracy')}
    for line, values in zip(lines, (['10', '0.5', '0.75'], ['1000', '0.25', '1']), strict=True):
        assert [line[0:9].strip(), line[11:20].strip(), line[22:].strip()] == values


def test_table_aligns_text_left_and_numbers_right():
    text = table(('name', 'count', 'share'), [('a', 1234567, 0.5), ('longer', 8, 0.25)])
    assert text.split('\n') == [
        'name        count  share',
        'a       1,234,567    0.5',
        'longer          8   0.25',
    ]


def test_table_widens_to_its_header():
    assert table(('a long head', 'b'), [('x', 'y')]).split('\n') == [
        'a long head  b',
        'x            y',
    ]


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (0.123456, '0.1235'),
        (12345.678, '1.235e+04'),
        (-123456.0, '-1.23e+05'),
        (2.0, '2'),
        (1e-9, '1e-09'),
    ],
)
def test_number(value, text):
    assert number(value) == text
    assert float(number(value)) == pytest.approx(value, rel=5e-3)
    assert len(text) <= 9


def test_predictions_show_the_columns_that_the_task_declares():
    lines = [
        {'file': 'a.png', 'kinds': ['cat', 'dog'], 'share': 0.98765, 'all': {'cat': 1.0}},
        {'file': 'b.csv', 'line': 2, 'kinds': [], 'share': 0.5, 'all': {}},
    ]
    result = {'predictions': lines, 'skipped': [], 'unit': 'things', 'step': 3, 'output': 'out'}
    shown = predictions({**result, 'columns': ('kinds', 'share')}).split('\n')
    assert [re.split('  +', line) for line in shown[:2]] == [
        ['file', 'kinds', 'share'],
        ['a.png', 'cat, dog', '0.988'],
    ]
    assert shown[2].split() == ['b.csv:2', '0.500']
    assert shown[3:] == ['2 things, checkpoint 3, written to out']
