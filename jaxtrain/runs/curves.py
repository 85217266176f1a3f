"""A figure of a run's metrics over its steps."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any


def draw_curves(lines: list[dict[str, Any]], metrics: Sequence[str], title: str) -> bytes:
    """Draw one panel per metric that the lines of metrics.jsonl have, and the learning rate.

    Args:
      lines: the lines of metrics.jsonl.
      metrics: names of the metrics.
      title: the name of the run.

    Returns:
      A PNG file.
    """
    from matplotlib.figure import Figure

    names = [n for n in metrics if any(n in line for line in lines)] or ['loss']
    names += ['lr'] * any('lr' in line for line in lines)
    width = 4.0 * len(names)
    figure = Figure(figsize=(width, 3.6), layout='constrained', facecolor='white')
    figure.suptitle(textwrap.fill(title, int(11 * width)), fontsize=10)
    for number, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), number + 1)
        for split, style in (('train', '-'), ('val', 'o-'), ('test', 's')):
            points = [(x['step'], x[name]) for x in lines if x['split'] == split and name in x]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=split, ms=4, lw=1.4)
        axes.set(xlabel='step', ylabel={'lr': 'learning rate'}.get(name, name))
        axes.grid(alpha=0.3)
        if lines:
            axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=120)
    return buffer.getvalue()
