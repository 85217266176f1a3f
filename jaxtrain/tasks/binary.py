"""Binary classification: sigmoid cross-entropy of one output, the logit of the second class."""

import jax
import jax.numpy as jnp
import optax

from jaxtrain.data.features import CLASS
from jaxtrain.data.on_device.mixing import mixed
from jaxtrain.data.sources.source import Source
from jaxtrain.errors import UserError
from jaxtrain.tasks.classify import ACCURACY, LABEL, most_probable
from jaxtrain.tasks.task import LOSS, Batch, Prediction, Task, means


def _outputs(source: Source) -> int:
    if len(source.classes) != 2:
        raise UserError(
            f"config.task.name='binary' needs two classes, but the data has {len(source.classes)};"
            " set it to 'classify'"
        )
    return 1


def _values(logits: jax.Array, batch: Batch, smoothing: float) -> dict[str, jax.Array]:
    logits = logits[:, 0].astype(jnp.float32)
    targets = mixed(lambda labels: labels.astype(jnp.float32), batch, LABEL)
    right = mixed(lambda labels: (logits > 0) == (labels == 1), batch, LABEL)
    if smoothing:
        targets = targets * (1 - smoothing) + smoothing / 2
    return {
        'loss': optax.sigmoid_binary_cross_entropy(logits, targets),
        'accuracy': right.astype(jnp.float32),
    }


def _rows(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    return _values(logits, {LABEL: batch[LABEL]}, 0.0)


def _probabilities(logits: jax.Array) -> dict[str, jax.Array]:
    second = jax.nn.sigmoid(logits.astype(jnp.float32))
    return {'probabilities': jnp.concatenate([1 - second, second], -1)}


TASK = Task(
    label=CLASS,
    outputs=_outputs,
    values=_values,
    rows=_rows,
    summarize=means,
    metrics=(LOSS, ACCURACY),
    main='accuracy',
    prediction=Prediction(_probabilities, most_probable, ('class', 'probability')),
)
