"""The exact likelihood and the exact bound, against sums over paths and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.importance import plain_proposal
from sedd_jax.inference.score_based import ScoreBased, sequence_loss
from sedd_jax.model.score_model import dense_model
from sedd_jax.verification.exact.reverse_process import (
    ReverseProcess,
    base_distribution,
    exact_process,
)

T_MIN = 0.02
NOISE = noises.geometric(1e-3, 6.0)
SMALL = pytest.mark.parametrize("brute", ["absorb-3-2", "uniform-3-2"], indirect=True)


def _rough(brute):
    """A model that fits no distribution, positive everywhere."""

    def apply(params, xt, sigma, key=None):
        del params, key
        position, token = jnp.arange(xt.shape[1])[:, None], jnp.arange(brute.num_states)[None]
        angle = (xt.sum(-1)[:, None, None] + (1.7 * token + 2.3 * position)[None]) * 1.1
        log_score = jnp.sin(angle)
        if brute.name == "absorb":
            log_score -= jnp.log(jnp.expm1(sigma))[:, None, None] + 1
        return jnp.where(xt[..., None] == token[None], 0, log_score)

    family = ScoreBased(brute.space.graph, NOISE, dense_model(dict, apply))
    return ReverseProcess(family, {}, brute.space)


def _sigma(t):
    return 1e-3 * 6000.0**t


@SMALL
def test_nll_is_that_of_a_product_of_matrix_exponentials(brute):
    """The master equation by 50 steps of constant rates, in matrices built entry by entry."""
    process = _rough(brute)
    base = base_distribution(brute.space, NOISE, brute.space.uniform_data())
    states = jnp.asarray(brute.space.states)
    steps = 50
    width = (1 - T_MIN) / steps
    times = [*(1 - (np.arange(steps) + 0.5) * width), T_MIN]
    with jax.enable_x64(True):
        nll = process.nll(base, T_MIN)
        sigmas = jnp.array([_sigma(t) for t in times])[:, None] * jnp.ones((1, len(states)))
        log_scores = jax.vmap(lambda sigma: process.family.model.apply({}, states, sigma))(sigmas)
        *scores, score = np.exp(log_scores)
    probs = base
    for t, score_t in zip(times, scores, strict=False):
        generator = np.zeros((len(base),) * 2)
        for s, i, y, to in brute.changes:
            rate = _sigma(t) * np.log(6000.0) * brute.Q[brute.states[s][i], y] * score_t[s, i, y]
            generator[to, s] += rate
            generator[s, s] -= rate
        probs = expm(width * generator) @ probs
    sigma = _sigma(T_MIN)
    final = np.zeros(len(brute.clean))
    forward, backward = expm(sigma * brute.Q), expm(-sigma * brute.Q)
    for s, state in enumerate(brute.states):
        weights = [(backward @ score[s, i]) * forward[x] for i, x in enumerate(state)]
        tokens = [np.maximum(w[: brute.space.graph.num_tokens], 0) for w in weights]
        for column, row in enumerate(brute.clean):
            of_row = [w[y] / w.sum() for w, y in zip(tokens, brute.states[row], strict=True)]
            final[column] += probs[s] * np.prod(of_row)

    np.testing.assert_allclose(nll, -np.log(final), rtol=1e-4)


@SMALL
def test_the_loss_at_a_time_is_the_mean_of_the_training_loss(brute):
    process = _rough(brute)
    exact = process.loss_at(0.6)
    draws = 8192
    loss = jax.jit(sequence_loss(process.family, plain_proposal(T_MIN)))
    unit = jnp.full(draws, (0.6 - T_MIN) / (1 - T_MIN))
    for column, row in enumerate(brute.space.clean[:3]):
        x0 = jnp.tile(jnp.asarray(brute.space.states[row]), (draws, 1))
        nats = np.asarray(loss({}, jax.random.split(jax.random.key(int(row)), draws), unit, x0))
        assert abs(nats.mean() - exact[column]) < 4 * nats.std() / np.sqrt(draws)


@SMALL
def test_the_bound_is_above_the_likelihood_and_its_quadrature_has_converged(brute):
    process = _rough(brute)
    base = base_distribution(brute.space, NOISE, brute.space.uniform_data())
    nll = process.nll(base, T_MIN)
    coarse, fine = (process.bound(base, T_MIN, nodes) for nodes in (48, 96))
    np.testing.assert_allclose(coarse.total, fine.total, rtol=1e-5)
    assert np.all(fine.total > nll + 1e-3)  # the model is far from the truth, so the gap is wide
    assert fine.prior.shape == fine.reconstruction.shape == nll.shape


@SMALL
def test_with_true_scores_the_mean_bound_is_the_entropy(brute):
    space, t_min = brute.space, 1e-3
    support = {"absorb": 0.5, "uniform": 1.0}[brute.name]
    data = space.random_data(1, support)
    clean = data[space.clean]
    entropy = -np.sum(clean[clean > 0] * np.log(clean[clean > 0]))
    with jax.enable_x64(True):
        process, base = exact_process(space, NOISE, data), base_distribution(space, NOISE, data)
        nll, bound = process.nll(base, t_min), process.bound(base, t_min, 96).total
    held = clean > 0
    # the final step draws positions independently: at sigma = 1e-3 two move once in 10^6
    assert clean[held] @ bound[held] == pytest.approx(entropy, abs=1e-4)
    assert clean[held] @ nll[held] == pytest.approx(entropy, abs=1e-4)
    assert np.all(bound[held] > nll[held] - 1e-5)


@SMALL
def test_base_distribution_is_the_noised_data(brute):
    data = brute.space.random_data(0)
    sigma = float(NOISE.sigma(jnp.float32(1.0)))
    expected = brute.marginal(data, sigma)
    np.testing.assert_allclose(base_distribution(brute.space, NOISE, data), expected, rtol=1e-5)
