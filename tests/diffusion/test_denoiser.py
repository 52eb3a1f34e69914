import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from sedd_jax.diffusion import denoiser as tweedie
from sedd_jax.diffusion import graph as graph_module
from tests.skewed import skewed

V = 4
# Q[y, x] is the rate from x to y: columns sum to 0 (Eqs. 15, over V, and 16).
UNIFORM_Q = np.full((V, V), 0.25) - np.eye(V)
ABSORBING_Q = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, -1.0, 0], [1.0, 1.0, 1.0, 0]])
HYBRID_Q = np.array([[0.2], [0.2], [0.2], [0.4]]) - np.eye(V)
SKEWED_Q = np.array([[0.1], [0.2], [0.4], [0.3]]) - np.eye(V)
MASK = 3
EPS = 2.0**-24

denoise_probs = jax.jit(tweedie.denoise_probs, static_argnums=0)
staggered_score = jax.jit(tweedie.staggered_score, static_argnums=0)
tweedie_probs = jax.jit(tweedie.tweedie_probs, static_argnums=0)

# One row of the batch each: the noise at t and at t - dt, from a small step to all of the noise.
SIGMA_T = np.array([0.3, 0.3, 2.0, 2.0, 1e-3], np.float32)
SIGMA_S = np.array([0.299, 0.1, 1.9, 0.01, 1e-4], np.float32)
DELTA = SIGMA_T - SIGMA_S


@pytest.fixture(
    params=[
        (graph_module.absorbing(3), ABSORBING_Q, np.array([0.5, 0.3, 0.2, 0])),
        (graph_module.uniform(4), UNIFORM_Q, np.array([0.4, 0.3, 0.2, 0.1])),
        (graph_module.hybrid(3, mask=0.4), HYBRID_Q, np.array([0.5, 0.3, 0.2, 0])),
        (skewed(0.1, 0.2, 0.4, 0.3), SKEWED_Q, np.array([0.4, 0.3, 0.2, 0.1])),
    ],
    ids=["absorb", "uniform", "hybrid", "skewed"],
)
def case(request):
    """A graph over 4 states, its Q, and a distribution of a single clean token."""
    return request.param


def _states():
    """Every state once in every row."""
    return jnp.tile(jnp.arange(V), (len(SIGMA_T), 1))


def _exact_scores(Q, p0):
    """p_t(y) / p_t(x) for x_t = 0 ... V-1 at every noise of SIGMA_T."""
    marginals = np.stack([expm(float(sigma) * Q) @ p0 for sigma in SIGMA_T])
    return marginals[:, None, :] / marginals[:, :, None]


def _rounding(delta_sigma, score):
    """Float32 error of terms of size exp(delta_sigma) * sum(score) that cancel."""
    size = np.exp(np.float64(delta_sigma))[:, None, None] * score.sum(-1, keepdims=True)
    return 6 * EPS * size


def _assert_within(got, expected, tolerance):
    assert got.shape == expected.shape
    excess = np.abs(np.float64(got) - expected) - tolerance
    assert excess.max() <= 0, excess.max()


def test_staggered_score_is_the_inverse_exponential_times_the_score(case):
    graph, Q, _ = case
    score = np.random.default_rng(0).uniform(0.1, 3, (len(DELTA), V, V)).astype(np.float32)
    got = staggered_score(graph, jnp.array(score), jnp.array(DELTA))
    inverses = np.stack([expm(-float(delta) * Q) for delta in DELTA])
    expected = np.einsum("byz,bxz->bxy", inverses, np.float64(score))
    _assert_within(got, expected, _rounding(DELTA, score))


def test_staggered_score_of_exact_scores_is_the_earlier_marginal(case):
    graph, Q, p0 = case
    score = _exact_scores(Q, p0)
    got = staggered_score(graph, jnp.array(score, jnp.float32), jnp.array(DELTA))
    earlier = np.stack([expm(float(sigma) * Q) @ p0 for sigma in SIGMA_S])
    later = np.stack([expm(float(sigma) * Q) @ p0 for sigma in SIGMA_T])
    _assert_within(got, earlier[:, None, :] / later[:, :, None], _rounding(DELTA, score))


def test_tweedie_probs_are_the_posterior_of_the_earlier_state(case):
    graph, Q, p0 = case
    score = _exact_scores(Q, p0)
    got = tweedie_probs(graph, _states(), jnp.array(score, jnp.float32), jnp.array(DELTA))
    expected = np.empty((len(DELTA), V, V))
    for row, (sigma_s, delta) in enumerate(zip(SIGMA_S, DELTA, strict=True)):
        earlier, step = expm(float(sigma_s) * Q) @ p0, expm(float(delta) * Q)
        for x in range(V):
            joint = [earlier[y] * step[x, y] for y in range(V)]
            expected[row, x] = np.array(joint) / sum(joint)
    _assert_within(got, expected, _rounding(DELTA, score))


def test_tweedie_probs_without_noise_stay(case):
    graph, Q, p0 = case
    score = jnp.array(_exact_scores(Q, p0), jnp.float32)
    got = tweedie_probs(graph, _states(), score, jnp.zeros(len(SIGMA_T)))
    np.testing.assert_array_equal(got, np.broadcast_to(np.eye(V), got.shape))


def test_tweedie_rows_sum_to_one_whatever_the_score(case):
    # row(x) of exp(d Q) times exp(-d Q) s is s_x, which is 1 by definition of a ratio
    graph, _, _ = case
    score = np.random.default_rng(1).gamma(1.0, 3.0, (len(DELTA), V, V)).astype(np.float32)
    score[:, np.arange(V), np.arange(V)] = 1
    got = tweedie_probs(graph, _states(), jnp.array(score), jnp.array(DELTA))
    total = np.float64(got).sum(-1, keepdims=True)
    _assert_within(total, np.ones_like(total), _rounding(DELTA, score))
    assert np.abs(np.float64(score).sum(-1) - 1).max() > 5  # not because the score is normalised


def test_denoise_probs_are_the_posterior_of_the_clean_token(case):
    graph, Q, p0 = case
    score = _exact_scores(Q, p0)
    got = denoise_probs(graph, _states(), jnp.array(score, jnp.float32), jnp.array(SIGMA_T))
    num_tokens = V if graph.mask_id is None else V - 1
    assert got.shape == (len(SIGMA_T), V, num_tokens)
    expected = np.empty(got.shape)
    for row, sigma in enumerate(SIGMA_T):
        kernel = expm(float(sigma) * Q)
        for x in range(V):
            joint = [p0[y] * kernel[x, y] for y in range(num_tokens)]
            expected[row, x] = np.array(joint) / sum(joint)
    _assert_within(got, expected, _rounding(SIGMA_T, score))


def test_absorbing_step_jumps_with_expm1_of_the_noise_times_the_scores():
    # The scores need not be exact: this is what Eq. 19 reduces to, whatever they are.
    graph = graph_module.absorbing(3)
    score = np.random.default_rng(2).uniform(0.1, 1, (len(DELTA), V, V)).astype(np.float32)
    score[:, np.arange(V), np.arange(V)] = 1
    got = np.float64(tweedie_probs(graph, _states(), jnp.array(score), jnp.array(DELTA)))
    expm1 = np.expm1(np.float64(DELTA))
    at_mask = np.float64(score[:, MASK, :MASK])
    # products without cancellation, so also the small ones of the last row keep their digits
    np.testing.assert_allclose(got[:, MASK, :MASK], expm1[:, None] * at_mask, rtol=8 * EPS)
    stay = 1 - expm1 * at_mask.sum(-1)
    np.testing.assert_allclose(got[:, MASK, MASK], stay, atol=6 * EPS * np.exp(2) * 5)
    assert stay.min() < 0  # clamping is the sampler's task, not hidden here


def test_an_unmasked_position_stays_whatever_its_scores():
    graph = graph_module.absorbing(3)
    score = np.random.default_rng(3).uniform(0.1, 3, (len(DELTA), V, V)).astype(np.float32)
    score[:, np.arange(V), np.arange(V)] = 1
    for delta in [DELTA, SIGMA_T]:
        got = tweedie_probs(graph, _states(), jnp.array(score), jnp.array(delta))[:, :MASK]
        expected = np.broadcast_to(np.eye(V)[:MASK], got.shape)
        np.testing.assert_allclose(got, expected, atol=4 * EPS)


def test_a_step_under_a_limit_that_changes_takes_the_average_over_the_step():
    """Bayes' rule with forward kernels of two pieces, each with its own limiting distribution."""
    before, during, clean = (np.random.default_rng(seed).dirichlet(np.ones(V)) for seed in range(3))
    first, delta = 0.4, 0.7
    earlier = expm(first * (np.outer(before, np.ones(V)) - np.eye(V))) @ clean
    step = expm(delta * (np.outer(during, np.ones(V)) - np.eye(V)))
    noised = step @ earlier
    wanted = step * earlier / noised[:, None]  # [x_t, x_s]
    score = jnp.array(noised[None] / noised[:, None], jnp.float32)[None]
    graph = skewed(*during.tolist())
    got = tweedie_probs(graph, jnp.arange(V)[None], score, jnp.array([delta]))[0]
    np.testing.assert_allclose(got, wanted, atol=1e-5)
