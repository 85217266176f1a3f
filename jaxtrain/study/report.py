"""The report of a comparison: a table, a Markdown page and a figure."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.config import Config
from jaxtrain.data.features import ARRAYS, CLASS, IMAGE
from jaxtrain.data.sources.open import data_name, open_source
from jaxtrain.runs.folder import RunDir, read_config
from jaxtrain.runs.metric import Metric
from jaxtrain.study.stats import Interval
from jaxtrain.study.verdict import Arm, Pair
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

COLOURS = ('#4c78a8', '#e45756', '#54a24b', '#b279a2', '#f58518')

# Number of example images in the figure.
STRIP = 16


def text_table(rows: list[Arm], metric: Metric) -> str:
    """Formats the table, one line per arm."""
    return table(_columns(metric), [_cells(row, metric) for row in rows])


@dataclass(frozen=True)
class Comparison:
    """The content of a report.

    Attributes:
      config: the config file.
      metric: the metric by which arms are compared.
      rows: rows of the table, after that of the run that arms start from, if there is one.
      pairs: all pairs of arms.
      verdict: the conclusion in words.
      runs: the folders of each arm's runs.
    """

    config: str
    metric: Metric
    rows: list[Arm]
    pairs: list[Pair]
    verdict: str
    runs: dict[str, list[Path]]


def write(folder: RunDir, comparison: Comparison) -> None:
    """Writes report.md and compare.png beside compare.json."""
    arms = [row for row in comparison.rows if row.name in comparison.runs]
    cfg = Config.from_json(read_config(comparison.runs[arms[0].name][0])['config'])
    folder.write_bytes('compare.png', _draw(arms, cfg, comparison.metric))
    folder.write_bytes('report.md', _markdown(comparison, arms, cfg).encode())


def _markdown(comparison: Comparison, arms: list[Arm], cfg: Config) -> str:
    metric = comparison.metric

    def line(cells) -> str:
        return '| ' + ' | '.join(cells) + ' |'

    def shown(cell) -> str:
        return f'{cell:,}' if isinstance(cell, int) else str(cell)

    body = [line(shown(cell) for cell in _cells(row, metric)) for row in comparison.rows]
    differences = [
        line(
            (
                f'{p.first} - {p.second}',
                _difference(p.difference, metric),
                'no' if p.difference.holds_zero else 'yes',
            )
        )
        for p in comparison.pairs
    ]
    device, columns = jax.devices()[0], _columns(metric)
    unit = 'points of ' if metric.percent else ''
    return '\n'.join(
        [
            f'# {", ".join(arm.name for arm in arms)} on {data_name(cfg.data)}',
            '',
            f'**{comparison.verdict}**',
            '',
            f'From `{comparison.config}`: {_amount(cfg)}, {arms[0].seeds} paired seeds per arm, '
            f'on {jax.device_count()} {device.device_kind} device(s), {os.cpu_count()} host cores.',
            '',
            line(columns),
            line(['---'] * len(columns)),
            *body,
            '',
            'Costs are per run. GFLOP counts matrix products and convolutions of training; seconds '
            'are total time, including compilation and evaluation. In each run the checkpoint was '
            'selected on val, and test was read once. Intervals cover the choice of seeds (initial '
            'parameters, order of the data) and of test examples, for the same training examples.',
            '',
            line(('difference', f'{unit}test {metric.name} (95%)', 'measurable')),
            line(['---'] * 3),
            *differences,
            '',
            f'![{metric.name} against cost](compare.png)',
            '',
        ]
    )


def _draw(arms: list[Arm], cfg: Config, metric: Metric) -> bytes:
    from matplotlib.figure import Figure

    source = open_source(cfg.data, cfg.data.train, 'config.data.train', cfg.data.limit)
    shows = source.model_input.meaning == IMAGE and ARRAYS[CLASS] in source.features
    figure = Figure(figsize=(7.2, 4.8), layout='constrained')
    halves: Any = figure.subfigures(2, 1, height_ratios=(6, 1)) if shows else (figure, None)
    upper, lower = halves
    widest = max(arm.flops for arm in arms) / 1e9
    axes = upper.add_subplot()
    taken: list[float] = []
    for arm, colour in zip(arms, COLOURS * len(arms), strict=False):
        cost, mean = arm.flops / 1e9, arm.score.mean
        # Arms of equal cost are drawn side by side, and so are the runs of an arm.
        place = cost + 0.07 * widest * sum(abs(cost - other) < 0.03 * widest for other in taken)
        taken.append(cost)
        runs = place + widest * np.linspace(-0.02, 0.02, arm.seeds + 2)[1:-1]
        axes.plot(runs, arm.by_seed, 'o', color=colour, alpha=0.4, ms=4)
        bars = [[mean - arm.score.low], [arm.score.high - mean]]
        axes.errorbar([place], [mean], yerr=bars, fmt='_', color=colour, ms=16, capsize=5)
        axes.annotate(
            f'{arm.name}\n{metric.text(mean)}{_unit(metric)}',
            (place, arm.score.high),
            (0, 5),
            textcoords='offset points',
            ha='center',
        )
    axes.set(
        xlabel='training cost per run (GFLOP; arms of equal cost stand side by side)',
        ylabel=f'test {metric.name}',
        title=f'{data_name(cfg.data)}: {_amount(cfg)}, {arms[0].seeds} paired seeds, 95% intervals',
    )
    axes.set_xlim(0, 1.25 * widest)
    axes.margins(y=0.16)
    axes.grid(alpha=0.3)
    if shows:
        _draw_examples(lower, source)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=130)
    return buffer.getvalue()


def _draw_examples(figure, source) -> None:
    """Draws a strip of images, one of each of the first classes."""
    strip = source.fetch(_one_per_class(source))
    images, labels = strip[source.inputs], strip[ARRAYS[CLASS]]
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        tile = figure.add_subplot(1, len(labels), place + 1)
        tile.imshow(image.squeeze(), cmap='gray', vmin=0, vmax=255)
        tile.set_title(source.classes[label], fontsize=9)
        tile.axis('off')


def _one_per_class(source) -> np.ndarray:
    """Indices of the first example of each of the first classes."""
    labels = source.labels
    if labels is None:
        labels = source.fetch(np.arange(min(len(source), 4096)))[ARRAYS[CLASS]]
    classes = np.unique(labels)[:STRIP]
    return np.array([np.flatnonzero(labels == c)[0] for c in classes])


def _amount(cfg: Config) -> str:
    return f'{cfg.data.limit} labels per class' if cfg.data.limit else 'all labels'


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
        _score(row.score, metric),
    )


def _score(value: Interval, metric: Metric) -> str:
    mean, low, high = map(metric.text, (value.mean, value.low, value.high))
    return f'{mean}{_unit(metric)} [{low}, {high}]'


def _difference(value: Interval, metric: Metric) -> str:
    mean, low, high = (metric.text(x, '+') for x in (value.mean, value.low, value.high))
    return f'{mean} [{low}, {high}]'


def _unit(metric: Metric) -> str:
    return '%' if metric.percent else ''
