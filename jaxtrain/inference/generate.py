"""Text generation: a causal model (models/gpt.py) continues prompts, one token at a time.

Prompts of different lengths share a batch and are padded on the *right*, with any token. Each row
continues at its own position: a token has the position that it would have in a batch of its own, it
attends to no later key, and the keys of the padding are overwritten one by one. So there is no
padding token, and no mask for it.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxtrain.errors import UserError


@struct.dataclass
class Prompts:
    """A batch of prompts.

    Attributes:
      tokens: int32 [batch, length], padded on the right.
      lengths: int32 [batch], number of tokens of each prompt; at least 1.
      key: seeds the sampling; unused if the temperature is 0.
    """

    tokens: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
    key: jax.Array


@dataclass(frozen=True)
class Sampling:
    """Settings of a language model's continuation.

    Attributes:
      new_tokens: number of tokens to add.
      temperature: divides the logits; 0 always takes the most probable token.
      top_k: sample from this many most probable tokens; 0 samples from all.
      top_p: sample from the most probable tokens that together have this probability.
      seed: makes the key of each batch.
      stop: the token that ends a row; -1 for none.
    """

    new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: int = -1

    def key(self, first: int) -> jax.Array:
        """The key of the batch that begins with the prompt of this number."""
        return jax.random.fold_in(jax.random.key(self.seed), first)


def generate(model, variables: Any, prompts: Prompts, sampling: Sampling) -> jax.Array:
    """Continues prompts, with a cache of keys and values.

    One program is compiled for each combination of shapes and sampling settings. One step processes
    the whole prompts, and one more step each new token, until all rows have stopped.

    Args:
      model: has the methods `features` and `logits` of `models.gpt.GPT`.
      variables: {'params': ...}.
      prompts: the prompts to continue.
      sampling: how they are continued.

    Returns:
      int32 [batch, new_tokens]: the continuation of each prompt, including the stop token, which is
      repeated to the end of the row.

    Raises:
      UserError: more tokens than the model's context, a length that does not fit its prompt, or a
        number out of range.
    """
    _check(model.context, prompts, sampling.new_tokens)
    _check_choice(sampling.temperature, sampling.top_k, sampling.top_p)
    return _generate(model, variables, prompts, sampling)


@functools.partial(jax.jit, static_argnames=('model', 'sampling'))
def _generate(model, variables: Any, prompts: Prompts, sampling: Sampling) -> jax.Array:
    (batch, length), new_tokens, stop = prompts.tokens.shape, sampling.new_tokens, sampling.stop
    lengths = jnp.asarray(prompts.lengths, jnp.int32)

    def step(cache, tokens, start, at):
        """The logits after token `at` of each row, [batch, outputs], and the cache."""
        features, kept = model.apply(
            {**variables, **cache}, tokens, train=False, cache=length + new_tokens, start=start,
            method='features', mutable=['cache'],
        )  # fmt: skip
        last = jnp.take_along_axis(features, at[:, None, None], 1)
        return model.apply(variables, last[:, 0], method='logits'), kept

    def more(carry):
        i, _, _, _, stopped = carry
        return (i < new_tokens) & ~stopped.all()

    def add(carry):
        i, out, logits, cache, stopped = carry
        chosen = choose(jax.random.fold_in(prompts.key, i), logits, sampling)
        chosen = jnp.where(stopped, stop, chosen)
        logits, cache = step(cache, chosen[:, None], lengths + i, jnp.zeros_like(lengths))
        return i + 1, out.at[:, i].set(chosen), logits, cache, chosen == stop

    logits, cache = step({}, prompts.tokens, jnp.zeros_like(lengths), lengths - 1)
    out = jnp.full((batch, new_tokens), stop, jnp.int32)
    carry = (0, out, logits, cache, jnp.zeros(batch, bool))
    return jax.lax.while_loop(more, add, carry)[1]


def choose(key: jax.Array, logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Samples one token per row, int32 [batch], from logits [batch, outputs]."""
    if not sampling.temperature:
        return logits.argmax(-1).astype(jnp.int32)
    logits = restrict(logits / sampling.temperature, sampling.top_k, sampling.top_p)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def restrict(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Sets the logits [..., outputs] of tokens that must not be sampled to -inf: first all but the
    `top_k` largest, then all but the fewest that together have the share `top_p` of the remaining
    probability (Holtzman et al. 2019, arXiv:1904.09751). Ties with the last token are kept.
    """
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        falling = jnp.sort(logits, descending=True)
        probabilities = jax.nn.softmax(falling)
        before = jnp.cumsum(probabilities, -1) - probabilities
        least = jnp.where(before < top_p, falling, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def _check(context: int, prompts: Prompts, new_tokens: int) -> None:
    (batch, length), lengths = prompts.tokens.shape, np.asarray(prompts.lengths)
    if lengths.shape != (batch,) or lengths.min() < 1 or lengths.max() > length:
        raise UserError(
            f'lengths of prompts must be {batch} numbers from 1 to {length}, and not '
            f'{lengths.tolist()}; begin an empty prompt with a token, such as <|endoftext|>'
        )
    if new_tokens < 1 or length + new_tokens > context:
        raise UserError(
            f'{new_tokens} new tokens after prompts of {length} do not fit the {context} of the '
            f"model's context; take 1 to {max(context - length, 1)}, or shorter prompts"
        )


def _check_choice(temperature: float, top_k: int, top_p: float) -> None:
    if not (temperature >= 0 and top_k >= 0 and 0 < top_p <= 1):
        raise UserError(
            f'temperature={temperature}, top_k={top_k}, top_p={top_p}: take a temperature and '
            'top_k of at least 0, and a top_p above 0 and at most 1'
        )
