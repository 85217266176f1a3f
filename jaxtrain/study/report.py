"""The report of a comparison: a table and a Markdown page."""

import os

import jax

from jaxtrain.config import Config
from jaxtrain.data.sources.open import data_name
from jaxtrain.runs.folder import RunDir, read_config
from jaxtrain.runs.metric import Metric
from jaxtrain.study.comparison import Arm, Comparison
from jaxtrain.study.pairs import Pair
from jaxtrain.study.picture import draw
from jaxtrain.study.stats import Interval
from jaxtrain.study.verdict import rule
from jaxtrain.terminal import number, table

# Columns of the table before the last one, which is the metric.
COLUMNS = (
    'arm',
    'init',
    'trained',
    'parameters',
    'optimizer bytes',
    'examples seen',
    'GFLOP',
    'seconds',
    'seeds',
)

BASELINES = {
    'majority': 'the most frequent class of the test split',
    'chance': 'each class equally often',
}


def text_table(comparison: Comparison) -> str:
    """Formats the table, one line per arm, and a line per baseline."""
    cells = [_cells(row, comparison.metric) for row in comparison.rows]
    text = table(_columns(comparison.metric), cells)
    return '\n'.join([text, *_baselines(comparison)])


def write(folder: RunDir, comparison: Comparison) -> None:
    """Writes report.md and compare.png beside compare.json."""
    arms = comparison.arms
    cfg = Config.from_json(read_config(comparison.runs[arms[0].name][0])['config'])
    setting = f'{data_name(cfg.data)}, {amount(cfg)}'
    folder.write_bytes('compare.png', draw(comparison, cfg, setting))
    folder.write_bytes('report.md', _markdown(comparison, cfg).encode())


def amount(cfg: Config) -> str:
    """The amount of training data in words."""
    return f'{cfg.data.limit} labels per class' if cfg.data.limit else 'all labels'


def _markdown(comparison: Comparison, cfg: Config) -> str:
    metric, arms, question = comparison.metric, comparison.arms, comparison.question
    device, columns = jax.devices()[0], _columns(metric)
    unit = 'points of ' if metric.percent else ''
    body = [_line(map(_shown, _cells(row, metric))) for row in comparison.rows]
    blank = [''] * (len(columns) - 2)
    body += [
        _line((name, *blank, metric.text(score) + _unit(metric)))
        for name, score in comparison.baselines.items()
    ]
    return '\n'.join(
        [
            f'# {", ".join(arm.name for arm in arms)} on {data_name(cfg.data)}',
            '',
            f'**{comparison.verdict.text}**',
            '',
            rule(metric, question.tolerance),
            '',
            f'From `{comparison.config}`: {amount(cfg)}, {arms[0].seeds} paired seeds per arm, '
            f'{question.examples:,} test examples, '
            f'on {jax.device_count()} {device.device_kind} device(s), {os.cpu_count()} host cores.',
            '',
            _line(columns),
            _line(['---'] * len(columns)),
            *body,
            '',
            'Costs are per run. GFLOP counts matrix products and convolutions of training; seconds '
            'are total time, including compilation and evaluation. In each run the checkpoint was '
            'selected on val, and test was read once. Intervals cover the choice of seeds (initial '
            'parameters, order of the data) and of test examples, for the same training examples. '
            + _sentence('Without training', _baselines(comparison)),
            '',
            _line(('difference', f'{unit}test {metric.name} (95%)', 'p (Holm)', 'measurable')),
            _line(['---'] * 4),
            *(_line(_difference(pair, metric)) for pair in question.pairs),
            '',
            *(line for note in comparison.notes for line in (note, '')),
            f'![{metric.name} and cost](compare.png)',
            '',
        ]
    )


def _sentence(begin: str, parts: list[str]) -> str:
    return f'{begin}: {"; ".join(parts)}.' if parts else ''


def _baselines(comparison: Comparison) -> list[str]:
    metric = comparison.metric
    return [
        f'{name} ({BASELINES[name]}): {metric.text(score)}{_unit(metric)}'
        for name, score in comparison.baselines.items()
    ]


def _line(cells) -> str:
    return '| ' + ' | '.join(cells) + ' |'


def _shown(cell) -> str:
    return f'{cell:,}' if isinstance(cell, int) else str(cell)


def _columns(metric: Metric) -> tuple[str, ...]:
    return (*COLUMNS, f'test {metric.name} (95%)')


def _cells(row: Arm, metric: Metric) -> tuple:
    return (
        row.name,
        row.init,
        row.params_trainable,
        row.params_total,
        row.opt_state_bytes,
        row.examples_seen,
        number(row.flops / 1e9),
        f'{row.seconds:.1f}',
        row.seeds,
        score_text(row.score, metric),
    )


def _difference(pair: Pair, metric: Metric) -> tuple[str, ...]:
    d = pair.difference
    mean, low, high = (metric.text(x, '+') for x in (d.mean, d.low, d.high))
    words = {True: 'yes', False: 'no', None: 'no verdict'}
    p = f'{pair.p:.2g}' if pair.p >= 0.0001 else '< 0.0001'
    return f'{pair.first} - {pair.second}', f'{mean} [{low}, {high}]', p, words[pair.differs]


def score_text(value: Interval, metric: Metric) -> str:
    """A mean with its interval."""
    mean, low, high = map(metric.text, (value.mean, value.low, value.high))
    return f'{mean}{_unit(metric)} [{low}, {high}]'


def _unit(metric: Metric) -> str:
    return '%' if metric.percent else ''
