"""The scores that need no training."""

import numpy as np

from jaxtrain.data.features import CLASS, IMAGE, Feature
from jaxtrain.data.sources.source import BLOCK, Source
from jaxtrain.runs.metric import Metric
from jaxtrain.study.baselines import baselines, labels_of

ACCURACY = Metric('accuracy', higher_is_better=True, percent=True)
FEATURES = {'image': Feature((2, 2, 1), np.uint8, IMAGE), 'label': Feature((), np.int32, CLASS)}


def source(labels: np.ndarray, known: bool) -> Source:
    def fetch(indices, numbers=None):
        return {'image': np.zeros((len(indices), 2, 2, 1), np.uint8), 'label': labels[indices]}

    names = ('a', 'b', 'c', 'd')
    given = labels if known else None
    return Source(fetch, len(labels), FEATURES, 'image', names, labels=given)


def test_majority_and_chance():
    labels = np.array([2, 0, 2, 2, 1, 0, 2, 2], np.int32)
    for known in (True, False):
        assert baselines(source(labels, known), ACCURACY) == {'majority': 5 / 8, 'chance': 1 / 4}


def test_labels_are_fetched_in_blocks():
    labels = (np.arange(BLOCK + 3) % 4).astype(np.int32)
    np.testing.assert_array_equal(labels_of(source(labels, False)), labels)
    assert len(labels_of(source(labels, False), 10)) == 10


def test_other_metrics_and_data_have_none():
    labels = np.zeros(4, np.int32)
    assert baselines(source(labels, True), Metric('loss', higher_is_better=False)) == {}
