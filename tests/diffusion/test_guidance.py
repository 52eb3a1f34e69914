"""Factors of evidence between neighbours, and ratios that keep to the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sedd_jax as sedd
from sedd_jax.diffusion.guidance import (
    embedded,
    exact_factors,
    first_order_factors,
    guided,
    on_schedule,
    times_evidence,
)
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.errors import BadInput

ROWS, LENGTH, STATES = 2, 3, 4
XT = jnp.array([[0, 3, 1], [2, 2, 3]])
SIGMA = jnp.array([0.5, 2.0])
LOG_SCORE = jnp.array(np.random.default_rng(0).normal(0, 1, (ROWS, LENGTH, STATES)), jnp.float32)
TABLE = jnp.array(np.random.default_rng(1).normal(0, 1, (STATES, 2)), jnp.float32)


def score_fn(xt, sigma):
    return DenseScore(xt, LOG_SCORE * (1 + 0 * sigma[:, None, None]))


def evidence(tokens, sigma):
    """Of tokens that depend on each other."""
    features = embedded(TABLE, tokens)
    return jnp.tanh(features.sum(1)).prod(-1) * sigma


def linear(tokens, sigma):
    return embedded(TABLE, tokens).sum((1, 2)) * sigma


def by_neighbour(evidence):
    """Factors, one neighbour at a time."""
    found = np.zeros((ROWS, LENGTH, STATES))
    for row, position, state in np.ndindex(*found.shape):
        both = jnp.stack([XT[row].at[position].set(state), XT[row]])
        log_prob = evidence(both, SIGMA[row][None].repeat(2))
        found[row, position, state] = log_prob[0] - log_prob[1]
    return found


def test_every_neighbour_is_weighed():
    found = exact_factors(evidence, XT, SIGMA, STATES)
    np.testing.assert_allclose(found, by_neighbour(evidence), atol=1e-5)


def test_one_gradient_is_exact_for_evidence_that_is_linear_in_the_tokens():
    found = first_order_factors(linear, XT, SIGMA, STATES)
    np.testing.assert_allclose(found, by_neighbour(linear), atol=1e-5)
    curved = np.abs(first_order_factors(evidence, XT, SIGMA, STATES) - by_neighbour(evidence))
    assert curved.max() > 0.1


@pytest.mark.parametrize("factors", [exact_factors, first_order_factors])
@pytest.mark.parametrize("wrong", [lambda x: 0.0, lambda x: jnp.stack([x, x], 1)])
def test_evidence_that_is_not_a_number_for_each_row_is_refused(factors, wrong):
    with pytest.raises(BadInput, match="of every row, an array of shape .* and returned one of"):
        factors(lambda tokens, sigma: wrong(evidence(tokens, sigma)), XT, SIGMA, STATES)


def test_from_impossible_tokens_possible_ones_come_first():
    def possible(tokens, sigma):
        return jnp.where(tokens[:, 0] == 0, -1.0, -jnp.inf) + 0 * sigma

    found = np.asarray(exact_factors(possible, XT, SIGMA, STATES))
    assert np.isneginf(found[0, 0, 1:]).all() and (found[0, 1:] == 0).all()
    assert found[1, 0, 0] > 40 and (found[1, 0, 1:] == 0).all() and (found[1, 1:] == 0).all()


def test_a_power_of_the_evidence_multiplies_the_ratios():
    for ratios, factors in (("exact", exact_factors), ("first_order", first_order_factors)):
        score = times_evidence(score_fn, evidence, 1.5, ratios, STATES)(XT, SIGMA)
        wanted = LOG_SCORE + 1.5 * factors(evidence, XT, SIGMA, STATES)
        np.testing.assert_allclose(score.log_score, wanted, rtol=1e-5)
    assert times_evidence(score_fn, evidence, 0.0, "exact", STATES) is score_fn


def test_a_weight_of_0_or_1_asks_once():
    def other(xt, sigma):
        return DenseScore(xt, -2 * LOG_SCORE)

    assert guided(score_fn, other, 1.0) is score_fn and guided(score_fn, other, 0.0) is other
    score = guided(score_fn, other, 3.0)(XT, SIGMA)
    np.testing.assert_allclose(score.log_score, 7 * LOG_SCORE, rtol=1e-5)


def test_masks_are_left_as_scheduled():
    graph = sedd.graph.absorbing(STATES - 1)
    scaled = on_schedule(score_fn, graph)(XT, SIGMA)
    ratios = jnp.where(jax.nn.one_hot(XT, STATES, dtype=bool), 0, jnp.exp(scaled.log_score))
    totals = np.broadcast_to(1 / np.expm1(SIGMA)[:, None], XT.shape)
    np.testing.assert_allclose(ratios.sum(-1), totals, rtol=1e-5)
    change = scaled.log_score - LOG_SCORE
    np.testing.assert_allclose(change, change[..., :1].repeat(STATES, -1), rtol=1e-4)
    assert on_schedule(score_fn, sedd.graph.uniform(STATES)) is score_fn


@pytest.mark.parametrize("factors", [exact_factors, first_order_factors])
def test_too_many_neighbours_are_refused(factors):
    with pytest.raises(BadInput, match=r"have 51,463,168 neighbours a sequence, and at most"):
        factors(evidence, jnp.zeros((1, 1024), int), SIGMA[:1], 50_257)
