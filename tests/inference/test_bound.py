import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.special import xlogy

import sedd_jax as sedd
from sedd_jax.diffusion.proposal import guess_proposal
from sedd_jax.diffusion.score_entropy import prior_kl
from sedd_jax.errors import BadInput
from sedd_jax.inference.estimate import estimate_bound, sequence_loss
from sedd_jax.inference.likelihood import Bound
from sedd_jax.model.score_model import dense_model
from sedd_jax.runtime.components import Components

VOCAB_SIZE, LENGTH = 5, 4


def constant_model(graph):
    """Scores of a network that knows nothing: uniform over tokens, whatever its input."""

    def apply(params, xt, sigma, key=None):
        del params, key
        shape = (*xt.shape, graph.num_states)
        return jnp.broadcast_to(
            -jnp.log(jnp.expm1(sigma))[:, None, None] - jnp.log(VOCAB_SIZE), shape
        )

    return apply


@pytest.fixture(scope="module")
def knows_nothing():
    graph, noise = sedd.graph.absorbing(VOCAB_SIZE), sedd.noise.loglinear()
    components = Components(graph, noise, dense_model(dict, constant_model(graph)))
    return jax.jit(sequence_loss(components, guess_proposal(graph, noise, 1e-3)))


def test_a_uniform_guess_has_the_entropy_of_a_uniform_guess(knows_nothing):
    """Exact: log V per token, of those noised at t = 1. The proposal leaves no variance."""
    tokens = jax.random.randint(jax.random.key(0), (40, LENGTH), 0, VOCAB_SIZE)
    nats = estimate_bound(knows_nothing, {}, jax.random.key(1), np.split(tokens, 4))
    assert nats.shape == (40,)
    bound = Bound(nats[None], np.full(40, LENGTH), "low-discrepancy")
    assert bound.nats_per_token == pytest.approx((1 - 1e-3) * np.log(VOCAB_SIZE), rel=1e-3)
    assert bound.stderr < 1e-2
    assert bound.perplexity == pytest.approx(np.exp(bound.nats_per_token))


def test_the_estimate_is_a_function_of_its_key_and_not_of_the_batches(knows_nothing):
    tokens = np.zeros((8, LENGTH), np.int32)
    batches = [tokens[:4], tokens[4:]]

    def nats(seed):
        return estimate_bound(knows_nothing, {}, jax.random.key(seed), batches)

    chex.assert_trees_all_equal(nats(0), nats(0))
    assert not np.array_equal(nats(0), nats(1))


def test_standard_error_of_the_mean():
    bound = Bound(np.array([1.0, 3.0]), length=2)
    assert (bound.mean, bound.nats_per_token, bound.stderr) == (2.0, 1.0, 1.0)


def test_nll_bound_of_a_trained_run(smoke_run):
    checkpoint = sedd.load(smoke_run)
    tokens = np.full((6, 32), ord("e"), np.int32)
    bound = sedd.nll_bound(jax.random.key(0), checkpoint, tokens, batch_size=4)
    assert bound.nats.shape == (1, 6)
    assert 0 < bound.nats_per_token < np.log(258)
    with pytest.raises(BadInput, match=r"needs ids in \[0, 257\)"):
        sedd.nll_bound(jax.random.key(0), checkpoint, tokens * 0 + 257)
    listed = sedd.nll_bound(jax.random.key(0), checkpoint, tokens.tolist(), batch_size=4)
    np.testing.assert_array_equal(listed.nats, bound.nats)
    for other in (tokens[:0], tokens[:2, :0], tokens[0], tokens * 0.5, []):
        with pytest.raises(BadInput, match=r"needs integers \[N, L\], at least one"):
            sedd.nll_bound(jax.random.key(0), checkpoint, other)


def test_the_complete_bound_adds_the_prior_and_the_final_step(smoke_run):
    checkpoint = sedd.load(smoke_run)
    tokens = np.full((64, 32), ord("e"), np.int32)
    key = jax.random.key(0)
    published, complete = (
        sedd.nll_bound(key, checkpoint, tokens, batch_size=64, complete=flag).nats
        for flag in (False, True)
    )
    # a share exp(-sigma(1)) = 1e-3 of the tokens is kept at t = 1, one of 257 by a guess
    prior = 32 * 1e-3 * np.log(257)
    final = complete - (1 - 1e-3) * published - prior
    assert np.all(final > -1e-2)
    # 32 tokens are masked at t = 1e-3 with probability 1e-3 each, and cost a few nats then
    assert np.mean(final > 1) < 0.2
    assert 0 <= final.mean() < 0.5


@pytest.mark.parametrize(("graph", "base"), [("absorb", 5), ("uniform", 5)])
def test_the_prior_term(graph, base):
    """By its definition, from the law of a noised token and of a noised uniform guess."""
    Q = np.full((5, 5), 0.2) - np.eye(5)
    if graph == "absorb":
        Q = np.pad(-np.eye(5), ((0, 1), (0, 1)))
        Q[-1, :-1] = 1
    kernel = expm(0.7 * Q)
    law, guess = kernel[:, 0], kernel[:, :base].mean(1)
    expected = np.sum(xlogy(law, law) - xlogy(law, guess))
    got = prior_kl(sedd.graph.GRAPHS[graph](5), jnp.float32(0.7))
    assert float(got) == pytest.approx(expected, rel=1e-5)
