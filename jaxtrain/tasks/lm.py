"""Language modelling: softmax cross-entropy of the next token in nats, and accuracy.

The values of a window are means over the targets that count; their number is its weight.
"""

import jax
import jax.numpy as jnp
import optax

from jaxtrain.data.features import ARRAYS, NEXT_TOKENS
from jaxtrain.data.sources.source import Source
from jaxtrain.runs.metric import Metric
from jaxtrain.tasks.task import LOSS, WEIGHT, Batch, Task, means

LABEL = ARRAYS[NEXT_TOKENS]


def _values(logits: jax.Array, batch: Batch, smoothing: float) -> dict[str, jax.Array]:
    counted = batch[LABEL] >= 0
    targets = jnp.maximum(batch[LABEL], 0)
    logits = logits.astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if smoothing:
        # The probability that is taken from the target is spread over all tokens.
        spread = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
        loss = (1 - smoothing) * loss + smoothing * spread
    weight = counted.sum(-1).astype(jnp.float32)
    share = counted / jnp.maximum(weight, 1)[:, None]
    right = (logits.argmax(-1) == targets).astype(jnp.float32)
    return {'loss': (loss * share).sum(-1), 'accuracy': (right * share).sum(-1), WEIGHT: weight}


def _outputs(source: Source) -> int:
    assert source.tokenizer is not None  # it made the tokens
    return source.tokenizer.size


TASK = Task(
    label=NEXT_TOKENS,
    outputs=_outputs,
    values=_values,
    rows=lambda logits, batch: _values(logits, batch, 0.0),
    summarize=means,
    metrics=(LOSS, Metric('accuracy', higher_is_better=True, percent=True)),
    main='loss',
    prediction=None,
)
