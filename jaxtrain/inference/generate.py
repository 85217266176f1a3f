"""Text generation: a causal model (models/gpt.py) continues prompts, one token at a time.

Prompts of different lengths share a batch and are padded on the *right*, with any token. Each row
continues at its own position: a token has the position that it would have in a batch of its own, it
attends to no later key, and the keys of the padding are overwritten one by one. So there is no
padding token, and no mask for it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.errors import UserError


def generate(
    model,
    variables: Any,
    prompts: jax.Array | np.ndarray,
    lengths: jax.Array | np.ndarray,
    new_tokens: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: int = -1,
) -> jax.Array:
    """Continues prompts, with a cache of keys and values.

    One program is compiled for each combination of shapes and sampling settings. One step processes
    the whole prompts, and one more step each new token, until all rows have stopped.

    Args:
      model: has the methods `features` and `logits` of `models.gpt.GPT`.
      variables: {'params': ...}.
      prompts: int32 [batch, length], padded on the right.
      lengths: int32 [batch], number of tokens of each prompt; at least 1.
      new_tokens: number of tokens to add.
      key: seeds the sampling; unused if temperature is 0.
      temperature: divides the logits; 0 always takes the most probable token.
      top_k: sample from this many most probable tokens; 0 samples from all.
      top_p: sample from the most probable tokens that together have this probability.
      stop: the token that ends a row; -1 for none.

    Returns:
      int32 [batch, new_tokens]: the continuation of each prompt, including the stop token, which is
      repeated to the end of the row.

    Raises:
      UserError: more tokens than the model's context, a length that does not fit its prompt, or a
        number out of range.
    """
    batch, length = prompts.shape
    _check(model.context, length, np.asarray(lengths), batch, new_tokens)
    _check_choice(temperature, top_k, top_p)
    return _generate(
        model, variables, prompts, jnp.asarray(lengths, jnp.int32), new_tokens, key,
        float(temperature), int(top_k), float(top_p), int(stop),
    )  # fmt: skip


@functools.partial(
    jax.jit,
    static_argnames=('model', 'new_tokens', 'temperature', 'top_k', 'top_p', 'stop'),
)
def _generate(model, variables, prompts, lengths, new_tokens, key, temperature, top_k, top_p, stop):
    batch, length = prompts.shape

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
        chosen = choose(jax.random.fold_in(key, i), logits, temperature, top_k, top_p)
        chosen = jnp.where(stopped, stop, chosen)
        logits, cache = step(cache, chosen[:, None], lengths + i, jnp.zeros_like(lengths))
        return i + 1, out.at[:, i].set(chosen), logits, cache, chosen == stop

    logits, cache = step({}, prompts, jnp.zeros_like(lengths), lengths - 1)
    out = jnp.full((batch, new_tokens), stop, jnp.int32)
    carry = (0, out, logits, cache, jnp.zeros(batch, bool))
    return jax.lax.while_loop(more, add, carry)[1]


def choose(
    key: jax.Array, logits: jax.Array, temperature: float, top_k: int, top_p: float
) -> jax.Array:
    """Samples one token per row, int32 [batch], from logits [batch, outputs]; see `generate`."""
    if not temperature:
        return logits.argmax(-1).astype(jnp.int32)
    logits = restrict(logits / temperature, top_k, top_p)
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


def _check(context: int, length: int, lengths: np.ndarray, batch: int, new_tokens: int) -> None:
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
