"""Classification with one class per example: softmax cross-entropy, and accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtrain.data.features import ARRAYS, CLASS
from jaxtrain.data.on_device.mixing import mixed
from jaxtrain.runs.metric import Metric
from jaxtrain.tasks.task import LOSS, Batch, Prediction, Task, means

LABEL = ARRAYS[CLASS]
ACCURACY = Metric('accuracy', higher_is_better=True, percent=True)


def _values(logits: jax.Array, batch: Batch, smoothing: float) -> dict[str, jax.Array]:
    targets = mixed(lambda labels: jax.nn.one_hot(labels, logits.shape[-1]), batch, LABEL)
    right = mixed(lambda labels: logits.argmax(-1) == labels, batch, LABEL)
    if smoothing:
        targets = optax.smooth_labels(targets, smoothing)
    return {
        'loss': optax.softmax_cross_entropy(logits.astype(jnp.float32), targets),
        'accuracy': right.astype(jnp.float32),
    }


def _rows(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return _values(logits, {LABEL: batch[LABEL]}, 0.0)


def _probabilities(logits: jax.Array) -> dict[str, jax.Array]:
    return {'probabilities': jax.nn.softmax(logits.astype(jnp.float32))}


def most_probable(
    arrays: Mapping[str, np.ndarray], classes: Sequence[str], top: int
) -> dict[str, Any]:
    """The fields of a prediction: the most probable class, and the `top` highest probabilities."""
    probabilities = arrays['probabilities']
    best = np.argsort(-probabilities, kind='stable')[:top]
    return {
        'class': classes[best[0]],
        'probability': float(probabilities[best[0]]),
        'probabilities': {classes[i]: float(probabilities[i]) for i in best},
    }


TASK = Task(
    label=CLASS,
    outputs=lambda source: len(source.classes),
    values=_values,
    rows=_rows,
    summarize=means,
    metrics=(LOSS, ACCURACY),
    main='accuracy',
    prediction=Prediction(_probabilities, most_probable, ('class', 'probability')),
)
