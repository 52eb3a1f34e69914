import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion.score_entropy import score_entropy
from sedd_jax.diffusion.token_guess import LEAST, guess_entropy, guess_kl, guess_of
from tests.skewed import skewed

GRAPHS = pytest.mark.parametrize(
    "graph",
    [
        graphs.absorbing(4),
        graphs.uniform(4),
        graphs.hybrid(3),
        skewed(0.0, 0.6, 0.1, 0.3, mask=True),
    ],
    ids=["absorb", "uniform", "hybrid", "skewed"],
)
GUESS = np.float32([0.55, 0.3, 0.1, 0.05])


def _noised(graph, sigma):
    """The guess, and its distribution after total noise sigma."""
    guess = GUESS[: graph.num_tokens] / GUESS[: graph.num_tokens].sum()
    clean = np.pad(guess, (0, graph.num_states - len(guess)))
    return jnp.asarray(guess), np.exp(-sigma) * clean - np.expm1(-sigma) * np.asarray(graph.limit)


@GRAPHS
@pytest.mark.parametrize("sigma", [0.02, 3.0])
def test_the_closed_forms_are_the_score_entropy_of_the_guess_and_its_mean(graph, sigma):
    guess, p = _noised(graph, sigma)
    states, tokens = graph.num_states, graph.num_tokens
    xt, x0 = (jnp.asarray(each.reshape(-1, 1)) for each in np.mgrid[:states, :tokens])
    sigmas = jnp.full(len(xt), sigma, jnp.float32)
    log_score = jnp.asarray(np.log(p) - np.log(p)[xt][..., None], jnp.float32)
    wanted = np.asarray(score_entropy(graph, log_score, sigmas, xt, x0))
    q = np.asarray(graph.transition(jnp.arange(tokens), jnp.full(tokens, sigma)))[x0, xt]
    drawn, mean = jax.jit(lambda *args: guess_entropy(graph, guess, *args))(sigmas, xt, x0)
    np.testing.assert_allclose(drawn, wanted, rtol=2e-3, atol=1e-5)
    expected = (q * wanted).reshape(states, tokens).sum(0)
    np.testing.assert_allclose(mean.reshape(states, tokens)[0], expected, rtol=2e-3)


@GRAPHS
def test_the_kl_falls_by_the_integral_of_the_mean(graph):
    guess, _ = _noised(graph, 1.0)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    low, high = 0.1, 2.0
    sigma = jnp.asarray(low + (high - low) * (nodes + 1) / 2, jnp.float32)
    x0 = jnp.tile(jnp.arange(graph.num_tokens), (len(sigma), 1))
    mean = np.asarray(guess_entropy(graph, guess, sigma, x0, x0).mean)
    first, last = np.asarray(guess_kl(graph, guess, jnp.array([low, high]), x0[:2]))
    np.testing.assert_allclose((high - low) / 2 * weights @ mean, first - last, rtol=1e-3)


@GRAPHS
def test_a_network_that_knows_frequencies_alone_guesses_them(graph):
    """Positions without weight do not count."""
    sigma = jnp.array([0.7])
    guess, p = _noised(graph, 0.7)
    xt = np.flatnonzero(np.asarray(graph.limit) > 0)
    log_score = np.full((1, len(xt) + 1, graph.num_states), 9.0, np.float32)
    log_score[0, :-1] = np.log(p) - np.log(p)[xt][:, None]
    weight = jnp.arange(len(xt) + 1)[None] < len(xt)
    found = guess_of(graph, sigma, jnp.asarray(log_score), weight / len(xt))
    wanted = (1 - LEAST) * guess + LEAST / graph.num_tokens
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
