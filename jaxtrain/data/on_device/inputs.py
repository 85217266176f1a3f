"""Model inputs from a batch: augmented and mixed in training, and always normalised."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from jaxtrain.data.features import TOKENS
from jaxtrain.data.on_device.augment import make_augment, make_normalise
from jaxtrain.data.on_device.mixing import make_mix
from jaxtrain.data.sources.source import Source

Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class Inputs:
    """Pure functions that make model inputs from a batch.

    Attributes:
      train: (batch, key) -> (augmented model inputs, the batch with the labels that augmentation
        changed).
      evaluate: batch -> model inputs.
    """

    train: Callable[[Batch, jax.Array], tuple[jax.Array, Batch]]
    evaluate: Callable[[Batch], jax.Array]


def make_inputs(cfg, source: Source) -> Inputs:
    """Return the inputs that `config.data` specifies for the data of a source.

    Raises:
      UserError: If the normalisation, augmentation or mixing is invalid.
    """
    name = source.inputs
    if source.model_input.meaning == TOKENS:
        return Inputs(lambda batch, key: (batch[name], batch), lambda batch: batch[name])
    normalise, augment = make_normalise(cfg, source.shape[2]), make_augment(cfg)
    mix = make_mix(cfg)

    def train(batch: Batch, key: jax.Array) -> tuple[jax.Array, Batch]:
        images, batch = mix(key, augment(key, batch[name]), batch)
        return normalise(images), batch

    return Inputs(train, lambda batch: normalise(batch[name]))
