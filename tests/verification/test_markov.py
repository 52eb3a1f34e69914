"""Scores of Markov chains and HMMs against enumeration, and what else is known of them exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion.categorical import BELOW_ONE, jump_probs
from sedd_jax.diffusion.denoiser import tweedie_weights
from sedd_jax.diffusion.temperature import TokenFilter
from sedd_jax.errors import BadInput
from sedd_jax.inference.batches import row_keys
from sedd_jax.verification import markov
from sedd_jax.verification.exact.scores import exact_model, exact_params
from sedd_jax.verification.exact.space import Space, sequences
from sedd_jax.verification.markov import (
    HiddenMarkov,
    MarkovScore,
    markov_chain,
    markov_model,
    random_model,
)

LENGTH, TOKENS = 3, 3


def distribution(model, space):
    """The model's probability of every sequence of the space, float64 [S]."""
    data = np.zeros(len(space.states))
    for row in space.clean:
        tokens = space.states[row]
        known = model.initial * model.emission[:, tokens[0]]
        for token in tokens[1:]:
            known = (known @ model.transition) * model.emission[:, token]
        data[row] = known.sum()
    return data


@pytest.mark.parametrize("hidden", [pytest.param(0, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_scores_are_those_of_enumeration(graph, hidden):
    space = Space(graphs.GRAPHS[graph](TOKENS), LENGTH)
    model = random_model(0, TOKENS, hidden, 0.5)
    with jax.enable_x64(True):
        xt = jnp.asarray(space.states)
        for sigma in (1e-3, 0.7, 12.0):
            level = jnp.full(len(xt), sigma)
            params = exact_params(distribution(model, space))
            expected = np.asarray(exact_model(space).apply(params, xt, level))
            found = np.asarray(jax.jit(markov_model(space.graph).apply)(model.params, xt, level))
            # where a position can change; to real tokens under the absorbing graph
            moves = np.asarray(space.graph.limit[xt] > 0)
            found, expected = (each[moves][:, :TOKENS] for each in (found, expected))
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_float32_scores_of_a_long_row():
    graph, model = graphs.uniform(8), random_model(1, 8, 0, 0.3)
    xt = model.sample(jax.random.key(0), 2, 64)
    level = jnp.array([1e-3, 0.5])
    apply = jax.jit(markov_model(graph).apply)
    found = apply(model.params, xt, level)
    with jax.enable_x64(True):
        expected = apply(model.params, xt, jnp.asarray(level, float))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_log_prob_and_entropy_are_those_of_enumeration():
    model = random_model(2, TOKENS, 0, 0.5)
    tokens = sequences(TOKENS, LENGTH)
    space = Space(graphs.uniform(TOKENS), LENGTH)
    data = distribution(model, space)
    np.testing.assert_allclose(jnp.exp(model.log_prob(tokens)), data, rtol=1e-5)
    np.testing.assert_allclose(model.entropy(LENGTH), -np.sum(data * np.log(data)), rtol=1e-9)
    assert np.isnan(random_model(2, TOKENS, 2, 0.5).entropy(LENGTH))


def test_samples_have_the_distribution_of_the_model():
    model = random_model(3, TOKENS, 2, 1.0)
    space = Space(graphs.uniform(TOKENS), LENGTH)
    samples = np.asarray(model.sample(jax.random.key(1), 20_000, LENGTH))
    frequencies = np.bincount(space.index(samples), minlength=len(space.states)) / len(samples)
    np.testing.assert_allclose(frequencies, distribution(model, space), atol=0.015)


@pytest.mark.slow
def test_one_token_and_impossible_contexts():
    chain = markov_chain(np.array([1.0, 0.0]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert chain.entropy(1) == 0
    assert chain.sample(jax.random.key(0), 1, 4).tolist() == [[0, 1, 0, 1]]
    assert chain.sample(jax.random.key(0), 2, 1).tolist() == [[0], [0]]
    log_prob = np.asarray(chain.log_prob(jnp.array([[0, 1, 0], [0, 0, 1]])))
    assert log_prob.tolist() == [0, -np.inf]
    # no clean row continues 0, 0: the masked position still gets a distribution
    row = jnp.array([[0, 0, 2, 1]])
    apply = jax.jit(markov_model(graphs.absorbing(2)).apply)
    score = apply(chain.params, row, jnp.array([1.0]))
    assert np.isfinite(np.exp(np.asarray(score[0, 2, :2]))).all()


@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_draws_have_the_distribution_of_dense_ones(graph):
    graph, shape = graphs.GRAPHS[graph](3), (64, 256)
    row = jnp.log(jnp.array([0.5, 1e-9, 2.0, 7.0])[: graph.num_states])
    at = graph.num_states - 1
    xt = jnp.full(shape, at)
    score = MarkovScore(xt, jnp.broadcast_to(row, (*shape, graph.num_states)))
    active = jnp.ones(shape, bool).at[:, 1].set(False)

    def weights(total):
        return tweedie_weights(graph, xt, total, jnp.full(shape[0], 0.4))

    @jax.jit
    def draw(keys):
        greedy = score.draw(keys, weights, active, TokenFilter(temperature=0))
        return *score.draw(keys, weights, active), greedy.xt

    drawn, total, greedy = map(np.asarray, draw(row_keys(jax.random.key(0), jnp.arange(shape[0]))))
    assert (drawn[:, 1] == at).all() and (total[:, 1] == 0).all()
    weights_at = weights(jnp.asarray(total)).weights(xt, jnp.exp(score.log_score))[0, 0]
    drawn = np.delete(drawn, 1, axis=1)
    found = np.bincount(drawn.ravel(), minlength=graph.num_states) / drawn.size
    np.testing.assert_allclose(found, jump_probs(weights_at), atol=4 * 0.5 / drawn.size**0.5)
    assert found[1] == 0  # 2e-9 of the draws
    assert set(np.unique(greedy)) == {at, int(row.at[at].set(-jnp.inf).argmax())}


def test_an_index_without_weight_is_never_drawn():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(5, 0.1), 1000).astype(np.float32)
    weights[:, [0, 3, 4]] *= rng.random((1000, 3)) < 0.5
    weights = weights[weights.sum(-1) > 0]
    for u in (2.0**-65, 0.3, BELOW_ONE):
        index = markov._inverse_cdf(jnp.full(len(weights), u), jnp.asarray(weights))
        assert (np.take_along_axis(weights, np.asarray(index)[:, None], -1) > 0).all()
    assert markov._inverse_cdf(jnp.array([0.5]), jnp.zeros((1, 5)))[0] == 4


def test_random_words_are_those_of_threefry():
    key, x = jnp.array([[7, 9]], jnp.uint32), jnp.arange(4, dtype=jnp.uint32)
    found = jnp.concatenate(markov._threefry(key, x, jnp.ones_like(x)))
    np.testing.assert_array_equal(
        found, threefry_2x32(key[0], jnp.concatenate([x, jnp.ones_like(x)]))
    )


def test_a_reducible_chain_keeps_to_its_class():
    chain = markov_chain(np.array([0.5, 0, 0.5]), np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]]))
    graph, row = graphs.absorbing(3), jnp.array([[0, 3, 3, 3, 1], [3, 3, 2, 3, 3]])
    score = np.exp(jax.jit(markov_model(graph).apply)(chain.params, row, jnp.ones(2)))[..., :3]
    clean = score / score.sum(-1, keepdims=True)
    masked = np.asarray(row) == 3
    expected = np.eye(3)[[1, 0, 1, 2, 2, 2, 2]]  # of the masked positions
    np.testing.assert_allclose(clean[masked], expected, atol=1e-6)
    np.testing.assert_allclose(chain.entropy(9), np.log(2))


def test_lengths_that_are_no_row():
    model = random_model(0, 2, 0, 1.0)
    for call in (lambda: model.sample(jax.random.key(0), 1, 0), lambda: model.entropy(0)):
        with pytest.raises(BadInput, match="at least 1 token, got length=0"):
            call()


@pytest.mark.parametrize(
    ("initial", "transition", "emission", "words"),
    [
        ([0.5, 0.6], np.eye(2), np.eye(2), "initial is no distribution"),
        ([1.0, 0.0], [[1, 0], [0, 0]], np.eye(2), "row 1 of transition is no distribution"),
        ([1.0, 0.0], np.eye(3), np.eye(2), r"transition has the shape \(3, 3\)"),
        ([1.0, 0.0], np.eye(2), [[2, -1], [0, 1]], "row 0 of emission"),
        ([np.nan, 1.0], np.eye(2), np.eye(2), "initial is no distribution"),
        ([], np.zeros((0, 0)), np.zeros((0, 2)), "initial is no distribution"),
        ([1.0, 0.0], np.eye(2), [1.0, 0.0], r"emission has the shape \(2,\)"),
        (1.0, np.eye(1), np.eye(1), r"initial has the shape \(\)"),
    ],
)
def test_what_is_no_model(initial, transition, emission, words):
    with pytest.raises(BadInput, match=words):
        HiddenMarkov(*map(np.asarray, (initial, transition, emission)))
