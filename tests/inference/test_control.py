import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.experiment.config import Config
from sedd_jax.inference.control import controlled
from sedd_jax.inference.likelihood import NLLEstimate
from sedd_jax.inference.model import TrainedModel
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.context import NOTHING
from sedd_jax.model.score_model import dense_model

GUESS = np.float32([0.6, 0.25, 0.1, 0.05])
GRAPHS = pytest.mark.parametrize("graph", ["absorb", "uniform"])


@functools.cache
def knows_frequencies(name):
    """A network for which tokens are independent, of distribution GUESS at every position."""
    graph = sedd.graph.GRAPHS[name](len(GUESS))
    clean = jnp.pad(GUESS, (0, graph.num_states - len(GUESS)))

    def apply(params, xt, sigma, key=None):
        del params, key
        sigma = sigma[:, None]
        p = jnp.exp(-sigma) * clean[None] - jnp.expm1(-sigma) * graph.limit[None]
        at_xt = jnp.take_along_axis(p, xt, axis=-1)
        return jnp.log(p)[:, None] - jnp.log(at_xt)[..., None]

    family = ScoreBased(graph, sedd.noise.loglinear(), dense_model(dict, apply))
    return TrainedModel(family, {}, Config(), None, None)


@GRAPHS
def test_the_means_of_the_guess_are_those_of_its_draws(graph):
    """Over x_t given t, and over t in a part too: within five errors, and these are small."""
    family, rows = knows_frequencies(graph).family, 8_000
    loss = jax.jit(family.control(1e-3).loss)
    x0 = jnp.broadcast_to(jnp.array([0, 3, 1, 2, 2]), (rows, 5))
    lengths, given = jnp.full(rows, 4), jnp.broadcast_to(jnp.arange(5) == 1, (rows, 5))
    quantiles = 0.2 + 0.3 * (jnp.arange(rows) + 0.5) / rows
    borders = jnp.full(rows, 0.2), jnp.full(rows, 0.5)
    keys, context = jax.random.split(jax.random.key(0), rows), NOTHING._replace(given=given)
    guess = {"token": jnp.asarray(GUESS)}
    found = np.float64(loss(guess, keys, quantiles, *borders, x0, lengths, context))
    drawn, at_t, mean = found.T
    for off in (drawn - at_t, drawn - mean / 0.3):
        error = off.std() / np.sqrt(rows)
        assert abs(off.mean()) < 5 * error and error < 0.02 * drawn.mean()


@GRAPHS
def test_a_network_that_knows_what_the_guess_knows_leaves_no_variance(graph):
    """The diffusion term is a difference of KLs, and every draw has it."""
    model = knows_frequencies(graph)
    tokens = np.random.default_rng(0).choice(len(GUESS), (16, 6), p=GUESS / GUESS.sum())
    found, plain = (
        sedd.nll_bound(jax.random.key(0), model, tokens, draws=draws) for draws in (8, 1)
    )
    wanted = -np.log(GUESS)[tokens].mean()
    assert found.nats_per_token == pytest.approx(wanted, abs=0.03)
    assert found.stderr < 0.1 * plain.stderr / np.sqrt(8)


def test_draws_are_scaled_by_the_others_of_their_row():
    nats = np.array([[3.0, 0.0], [5.0, 0.0]])
    guess = np.array([[[6.0, 5.0, 2.0], [0, 0, 0]], [[7.0, 5.0, 3.0], [0, 0, 0]]])
    # the guess has 4 and 6 in the halves of the first row, so 5 in all, which numerator and
    # denominator of the scales start from
    found, at_t = controlled(nats, guess)
    first, second, both = (5 + 5) / (5 + 5), (5 + 3) / (5 + 5), (5 + 8) / (5 + 10)
    np.testing.assert_allclose(found[:, 0], [3 - 2 * first + both, 5 - 1 * second - both])
    np.testing.assert_allclose(at_t[:, 0], [3 - 1 * first, 5 - 2 * second])
    np.testing.assert_array_equal(found[:, 1], 0)  # nothing is scored


def test_parts_of_t_have_means_of_their_own():
    """What draws differ by in all rows is no error of theirs."""
    rows, means = np.random.default_rng(0).standard_normal((2, 40)), np.array([[1.0], [9.0]])
    bound = NLLEstimate(means + 0.1 * rows, np.ones(40, int), "low-discrepancy")
    assert bound.stderr == pytest.approx(0.1 / np.sqrt(80), rel=0.2)
