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
    base_distribution,
    exact_bound,
    exact_nll,
    loss_at,
)
from sedd_jax.verification.exact.scores import exact_model, exact_params
from sedd_jax.verification.exact.space import float64

T_MIN = 0.02
NOISE = noises.geometric(1e-3, 6.0)
SMALL = pytest.mark.parametrize("brute", ["absorb-3-2", "uniform-3-2"], indirect=True)


def _rough_components(brute):
    """A model that fits no law, positive everywhere."""

    def apply(params, xt, sigma, key=None):
        del params, key
        position, token = jnp.arange(xt.shape[1])[:, None], jnp.arange(brute.num_states)[None]
        angle = (xt.sum(-1)[:, None, None] + (1.7 * token + 2.3 * position)[None]) * 1.1
        log_score = jnp.sin(angle)
        if brute.name == "absorb":
            log_score -= jnp.log(jnp.expm1(sigma))[:, None, None] + 1
        return jnp.where(xt[..., None] == token[None], 0, log_score)

    return ScoreBased(brute.space.graph, NOISE, dense_model(dict, apply))


def _sigma(t):
    return 1e-3 * 6000.0**t


@SMALL
def test_nll_is_that_of_many_small_steps(brute):
    """The master equation by 4000 explicit steps of matrices built entry by entry."""
    components = _rough_components(brute)
    base = base_distribution(brute.space, NOISE, brute.space.uniform_data())
    with float64():
        nll = exact_nll(components, {}, brute.space, base, T_MIN)
        states = jnp.asarray(brute.space.states)
        score_at = jax.jit(
            lambda t: jnp.exp(
                components.model.apply({}, states, jnp.full(len(states), NOISE.sigma(t)))
            )
        )
        law, steps = base, 4000
        width = (1 - T_MIN) / steps
        for step in range(steps):
            t = 1 - (step + 0.5) * width
            score = np.asarray(score_at(t))
            rate = _sigma(t) * np.log(6000.0)
            flow = np.zeros_like(law)
            for s, i, y, to in brute.changes:
                amount = rate * brute.Q[brute.states[s][i], y] * score[s, i, y] * law[s]
                flow[to] += amount
                flow[s] -= amount
            law = law + width * flow
        score = np.asarray(score_at(T_MIN))
    sigma = _sigma(T_MIN)
    final = np.zeros(len(brute.clean))
    forward, backward = expm(sigma * brute.Q), expm(-sigma * brute.Q)
    for s, state in enumerate(brute.states):
        laws = [np.maximum((backward @ score[s, i]) * forward[x], 0) for i, x in enumerate(state)]
        for column, row in enumerate(brute.clean):
            tokens = [w[: brute.space.graph.num_tokens] for w in laws]
            probs = [w[y] / w.sum() for w, y in zip(tokens, brute.states[row], strict=True)]
            final[column] += law[s] * np.prod(probs)
    np.testing.assert_allclose(nll, -np.log(final), rtol=2e-3)


@SMALL
def test_the_loss_at_a_time_is_the_mean_of_the_training_loss(brute):
    components = _rough_components(brute)
    exact = loss_at(components, {}, brute.space, 0.6)
    draws = 20_000
    loss = jax.jit(sequence_loss(components, plain_proposal(T_MIN)))
    unit = jnp.full(draws, (0.6 - T_MIN) / (1 - T_MIN))
    for column, row in enumerate(brute.space.clean[:3]):
        x0 = jnp.tile(jnp.asarray(brute.space.states[row]), (draws, 1))
        nats = np.asarray(loss({}, jax.random.split(jax.random.key(int(row)), draws), unit, x0))
        assert abs(nats.mean() - exact[column]) < 4 * nats.std() / np.sqrt(draws)


@SMALL
def test_the_bound_is_above_the_likelihood_and_its_quadrature_has_converged(brute):
    components = _rough_components(brute)
    base = base_distribution(brute.space, NOISE, brute.space.uniform_data())
    nll = exact_nll(components, {}, brute.space, base, T_MIN)
    coarse, fine = (
        exact_bound(components, {}, brute.space, base, T_MIN, nodes) for nodes in (48, 96)
    )
    np.testing.assert_allclose(coarse.total, fine.total, rtol=1e-5)
    assert np.all(fine.total > nll + 1e-3)  # the model is far from the truth, so the gap is wide
    assert fine.prior.shape == fine.reconstruction.shape == nll.shape


@SMALL
@pytest.mark.parametrize("support", [1.0, 0.5])
def test_with_true_scores_the_mean_bound_is_the_entropy(brute, support):
    space, t_min = brute.space, 1e-3
    data = space.random_data(1, support)
    clean = data[space.clean]
    entropy = -np.sum(clean[clean > 0] * np.log(clean[clean > 0]))
    with float64():
        components = ScoreBased(space.graph, NOISE, exact_model(space))
        params, base = exact_params(data), base_distribution(space, NOISE, data)
        bound = exact_bound(components, params, space, base, t_min, 96).total
        nll = exact_nll(components, params, space, base, t_min)
    held = clean > 0
    # the final step draws positions independently: at sigma = 1e-3 two move once in 10^6
    assert clean[held] @ bound[held] == pytest.approx(entropy, abs=1e-4)
    assert clean[held] @ nll[held] == pytest.approx(entropy, abs=1e-4)
    assert np.all(bound[held] > nll[held] - 1e-5)


@SMALL
def test_base_law_is_the_noised_law(brute):
    data = brute.space.random_data(0)
    sigma = float(NOISE.sigma(jnp.float32(1.0)))
    expected = brute.marginal(data, sigma)
    np.testing.assert_allclose(base_distribution(brute.space, NOISE, data), expected, rtol=1e-5)
