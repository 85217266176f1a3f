"""Tasks made from a config, their inputs, and a reference implementation of log-softmax."""

import numpy as np

from jaxtrain.config import Config, base
from jaxtrain.data.sources.source import Source
from jaxtrain.data.tokenizer import Tokenizer
from jaxtrain.tasks.task import Task
from jaxtrain.tasks.tasks import make_task
from jaxtrain.weights.bundle import resolve
from tests.support.inputs import image_source, window_source

CLASSES = ('a', 'b', 'c')
VOCABULARY = 5
IMAGES = np.arange(6 * 8, dtype=np.uint8).reshape(6, 2, 2, 2)
# The share of each example's own label in a mixed batch.
SHARES = np.array([1.0, 0.0, 0.25, 0.5, 0.9, 0.6], np.float32)


def images(classes=CLASSES, channels=2) -> Source:
    return image_source(6, (2, 2, channels), classes)


def texts() -> Source:
    return window_source(3, 4, Tokenizer('', VOCABULARY, -1, -1))


def make(source: Source, **changes) -> Task:
    return make_task(resolve(Config(base().to_dict()).replace(**changes), None), source)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))
