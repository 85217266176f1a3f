"""Text generation: the same tokens as without a cache, and only those that may be sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.inference.generate import Prompts, Sampling, choose, generate, restrict
from jaxtrain.models.gpt import GPT
from tests.support.inputs import abstract_variables

TOKENS, CONTEXT, NEW = 23, 16, 9
PROMPTS = np.array([[3, 1, 4, 1, 5, 9, 2], [7, 7, 7, 0, 0, 0, 0], [8, 2, 8, 1, 8, 0, 0], [6] * 7])
LENGTHS = np.array([7, 1, 5, 4])


@pytest.fixture(autouse=True, scope='module')
def quickly():
    """Disables optimisations, which take longer than these programs run."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def make(tied: bool):
    """Returns (a model, its variables). Its logits differ by more than rounding errors."""
    made = GPT(TOKENS, width=12, depth=2, heads=3, context=CONTEXT, tied=tied)
    params, _ = abstract_variables(made, (CONTEXT,))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.7, x.shape).astype(x.dtype), params)
    # Otherwise the same token is the most probable everywhere.
    params['backbone']['positions']['embedding'] *= 4
    params['backbone']['norm']['bias'] *= 0
    return made, {'params': params}


@pytest.fixture(scope='module')
def model():
    return make(tied=True)


def without_cache(model):
    """Tokens of a row -> the logits of the next token, computed from the whole row."""
    made, variables = model
    apply = jax.jit(lambda tokens: made.apply(variables, tokens, train=False)[0])

    def after(row: list[int]) -> np.ndarray:
        # One shape needs one program; a token does not attend to later ones.
        return np.asarray(apply(np.array([row + [0] * (CONTEXT - len(row))]))[len(row) - 1])

    return after


@pytest.fixture(scope='module')
def logits(model):
    return without_cache(model)


def one_by_one(logits, pick) -> np.ndarray:
    """Continuations without a cache; `pick` selects tokens from (step, logits of all rows)."""
    rows = [list(map(int, p[:n])) for p, n in zip(PROMPTS, LENGTHS, strict=True)]
    for i in range(NEW):
        chosen = np.asarray(pick(i, np.stack([logits(row) for row in rows])))
        for row, token in zip(rows, chosen, strict=True):
            row.append(int(token))
    return np.array([row[-NEW:] for row in rows])


def run(model, key=0, prompts=PROMPTS, lengths=LENGTHS, new_tokens=NEW, **choice) -> np.ndarray:
    batch = Prompts(prompts, lengths, jax.random.key(key))
    result = generate(*model, batch, Sampling(new_tokens, **choice))
    assert (result.shape, result.dtype) == ((len(prompts), new_tokens), jnp.int32)
    return np.asarray(result)


@pytest.mark.parametrize('tied', [True, False])
def test_the_most_probable_tokens_are_those_without_a_cache(tied):
    model = make(tied)
    wanted = one_by_one(without_cache(model), lambda i, rows: rows.argmax(-1))
    assert len(np.unique(wanted)) > 3 and len({tuple(row) for row in wanted}) == len(wanted)
    np.testing.assert_array_equal(run(model, temperature=0), wanted)


@pytest.mark.parametrize('temperature', [0.7, 1.0, 3.0])
def test_sampled_tokens_are_those_without_a_cache(model, logits, temperature):
    def pick(i, rows):
        return jax.random.categorical(jax.random.fold_in(key, i), rows / temperature)

    key = jax.random.key(5)
    wanted = one_by_one(logits, pick)
    np.testing.assert_array_equal(run(model, 5, temperature=temperature), wanted)


def test_sampled_among_the_most_probable(model, logits):
    def pick(i, rows):
        allowed = np.stack([of_top(row / 2, 5, 0.8) for row in rows])
        return jax.random.categorical(
            jax.random.fold_in(key, i), np.where(allowed, rows / 2, -np.inf)
        )

    key = jax.random.key(6)
    wanted = one_by_one(logits, pick)
    result = run(model, 6, temperature=2, top_k=5, top_p=0.8)
    np.testing.assert_array_equal(result, wanted)
    assert (result != run(model, 6, temperature=2)).any()
    assert (result != run(model, 7, temperature=2, top_k=5, top_p=0.8)).any()


def test_the_padding_of_a_prompt_does_not_matter(model):
    other = np.where(np.arange(7) < LENGTHS[:, None], PROMPTS, 11)
    assert (other != PROMPTS).any()
    np.testing.assert_array_equal(run(model, prompts=other), run(model))


def test_a_row_is_continued_as_it_is_alone(model):
    together = run(model, temperature=0)
    for i in (1, 2):
        length = LENGTHS[i]
        alone = run(
            model, prompts=PROMPTS[i : i + 1, :length], lengths=LENGTHS[i : i + 1], temperature=0
        )
        np.testing.assert_array_equal(alone[0], together[i])


def test_top_k_of_one_is_greedy(model):
    np.testing.assert_array_equal(run(model, top_k=1), run(model, temperature=0))


def test_a_row_ends_with_its_stop_token(model):
    """Other rows do not change."""
    plain = run(model, temperature=0)
    stop = int(plain[0, 2])
    wanted, stopped = plain.copy(), 0
    for row in wanted:
        if stop in row:
            row[list(row).index(stop) :] = stop
            stopped += 1
    assert stopped and (wanted != plain).any()
    np.testing.assert_array_equal(run(model, temperature=0, stop=stop), wanted)


def test_all_rows_may_stop_at_once(model):
    row = PROMPTS[:1, :7].repeat(3, 0)
    options = {'prompts': row, 'lengths': np.array([7, 7, 7]), 'temperature': 0}
    stop = int(run(model, **options)[0, 0])
    assert (run(model, **options, stop=stop) == stop).all()


def of_top(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Which tokens of one row may be chosen, bool; in float64, token by token."""
    order = np.argsort(-logits)
    allowed = set(order[: top_k or None])
    left = np.exp(logits.astype(np.float64))
    left[[i for i in range(len(left)) if i not in allowed]] = 0
    left /= left.sum()
    kept, total = set(), 0.0
    for i in order:
        if i in allowed and (total < top_p or top_p == 1):
            kept.add(i)
            total += left[i]
    return np.array([i in kept for i in range(len(logits))])


@pytest.mark.parametrize('top_k', [0, 1, 4, 40, 1000])
@pytest.mark.parametrize('top_p', [1e-6, 0.3, 0.9, 1.0])
def test_only_the_most_probable_tokens_are_kept(top_k, top_p):
    logits = np.random.default_rng(2).normal(0, 2, (6, 40)).astype(np.float32)
    result = np.asarray(restrict(jnp.asarray(logits), top_k, top_p))
    allowed = np.stack([of_top(row, top_k, top_p) for row in logits])
    np.testing.assert_array_equal(result, np.where(allowed, logits, -np.inf))


def test_ties_are_kept():
    row = jnp.log(jnp.array([[0.1, 0.3, 0.3, 0.3]]))
    assert np.isfinite(restrict(row, 1, 1.0)).tolist() == [[False, True, True, True]]
    assert np.isfinite(restrict(row, 0, 0.5)).tolist() == [[False, True, True, True]]


def test_tokens_are_as_frequent_as_they_are_probable():
    probabilities = np.array([0.05, 0.4, 0.15, 0.3, 0.1])
    rows = jnp.log(jnp.asarray(probabilities, jnp.float32)).reshape(1, 5).repeat(20_000, 0)

    def shares(temperature, top_k, top_p):
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        result = choose(jax.random.key(3), rows, sampling)
        assert result.dtype == jnp.int32
        return np.bincount(result, minlength=5) / len(rows)

    near = {'atol': 0.015}
    np.testing.assert_allclose(shares(1.0, 0, 1.0), probabilities, **near)
    colder = probabilities**2 / (probabilities**2).sum()
    np.testing.assert_allclose(shares(0.5, 0, 1.0), colder, **near)
    # 0.4 and 0.3 are less than 0.8 together; 0.4, 0.3 and 0.15 are enough.
    np.testing.assert_allclose(shares(1.0, 0, 0.8), np.array([0, 8, 3, 6, 0]) / 17, **near)
    # The share of 0.4 in 0.4 + 0.3 is more than 0.55.
    np.testing.assert_array_equal(shares(1.0, 2, 0.55), [0, 1, 0, 0, 0])
    # top_p applies to the probabilities at that temperature: at 0.5, that of the first is 0.56.
    np.testing.assert_array_equal(shares(0.5, 0, 0.55), [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(shares(0.0, 0, 1.0), [0, 1, 0, 0, 0])


def test_a_context_can_be_filled(model):
    result = run(model, new_tokens=CONTEXT - 7, temperature=0)
    np.testing.assert_array_equal(result[:, :NEW], run(model, temperature=0)[:, : CONTEXT - 7])


WRONG = {
    'more than the context': ({'new_tokens': 10}, 'do not fit the 16 of the model'),
    'no new tokens': ({'new_tokens': 0}, 'take 1 to 9'),
    'a prompt as long as the context': (
        {'prompts': np.ones((4, 16), int)}, 'shorter prompts',
    ),
    'an empty prompt': ({'lengths': np.array([7, 0, 5, 4])}, '4 numbers from 1 to 7'),
    'a length beyond its prompt': ({'lengths': np.array([8, 1, 5, 4])}, '[8, 1, 5, 4]'),
    'too few lengths': ({'lengths': np.array([7, 1])}, '4 numbers from 1 to 7'),
    'a temperature below 0': ({'temperature': -0.1}, 'temperature=-0.1'),
    'a temperature that is not a number': ({'temperature': float('nan')}, 'temperature=nan'),
    'a top_k below 0': ({'top_k': -1}, 'top_k=-1'),
    'no probability': ({'top_p': 0.0}, 'top_p=0.0'),
    'more than all probability': ({'top_p': 1.5}, 'top_p=1.5'),
}  # fmt: skip


@pytest.mark.parametrize('what', WRONG)
def test_invalid_numbers_are_reported_in_one_line(what):
    options, part = WRONG[what]
    made = GPT(TOKENS, width=12, depth=1, heads=3, context=CONTEXT)
    with pytest.raises(UserError) as caught:
        run((made, {}), **options)
    assert part in str(caught.value) and '\n' not in str(caught.value)
