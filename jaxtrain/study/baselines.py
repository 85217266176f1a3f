"""What needs no training: the scores of one constant answer and of guessing."""

import numpy as np

from jaxtrain.data.features import ARRAYS, CLASS
from jaxtrain.data.sources.source import BLOCK, Source
from jaxtrain.runs.metric import Metric


def baselines(source: Source, metric: Metric) -> dict[str, float]:
    """The score of each baseline by name.

    Args:
      source: the test split.
      metric: the metric of the comparison.

    Returns:
      'majority', which always answers the most frequent class of the split, and 'chance', which
      answers each class equally often; nothing unless the metric is the share of right classes.
    """
    if not metric.percent or ARRAYS[CLASS] not in source.features:
        return {}
    counts = np.bincount(labels_of(source))
    return {'majority': float(counts.max() / counts.sum()), 'chance': 1 / len(source.classes)}


def labels_of(source: Source, most: int | None = None) -> np.ndarray:
    """The labels of a source, int32 [examples]; those of the first `most` if they are fetched."""
    if source.labels is not None:
        return source.labels
    indices = np.arange(min(len(source), most or len(source)))
    blocks = np.split(indices, range(BLOCK, len(indices), BLOCK))
    return np.concatenate([source.fetch(block)[ARRAYS[CLASS]] for block in blocks])
