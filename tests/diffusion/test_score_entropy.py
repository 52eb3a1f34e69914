import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.special import logsumexp
from scipy.stats import entropy

from sedd_jax.diffusion import graph as graph_module
from sedd_jax.diffusion import noise as noise_module
from sedd_jax.diffusion.objective import dwdse_loss
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.diffusion.score_entropy import prior_kl, score_entropy
from tests.skewed import skewed

V = 4
# Q[y, x] is the rate from x to y: columns sum to 0 (Eqs. 15, over V, and 16).
UNIFORM_Q = np.full((V, V), 0.25) - np.eye(V)
ABSORBING_Q = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, -1.0, 0], [1.0, 1.0, 1.0, 0]])
LIMIT = {"hybrid": np.array([0.2, 0.2, 0.2, 0.4]), "skewed": np.array([0.1, 0.5, 0.25, 0.15])}
HYBRID_Q, SKEWED_Q = (np.outer(limit, np.ones(V)) - np.eye(V) for limit in LIMIT.values())
MASK = 3
EPS = 2.0**-24
SIGMA = np.array([1e-3, 0.05, 0.5, 3.0], np.float32)  # one per row
SHAPE = (4, 6)


@pytest.fixture(
    params=[
        (graph_module.absorbing(3), ABSORBING_Q),
        (graph_module.uniform(4), UNIFORM_Q),
        (graph_module.hybrid(3, mask=0.4), HYBRID_Q),
        (skewed(*LIMIT["skewed"].tolist()), SKEWED_Q),
    ],
    ids=["absorb", "uniform", "hybrid", "skewed"],
)
def case(request):
    """A graph over 4 states and its Q."""
    return request.param


@functools.partial(jax.jit, static_argnums=0)
def _value_and_grad(graph, log_score, sigma, xt, x0):
    def total(log_score):
        loss = score_entropy(graph, log_score, sigma, xt, x0)
        return loss.sum(), loss

    grad, loss = jax.grad(total, has_aux=True)(log_score)
    return loss, grad


def _loss_and_grad(graph, log_score, sigma, xt, x0):
    arrays = (jnp.array(log_score, jnp.float32), jnp.array(sigma), jnp.array(xt), jnp.array(x0))
    return [np.float64(array) for array in _value_and_grad(graph, *arrays)]


def _tokens(Q, seed=0):
    """Clean tokens and noised ones that they can reach, both kinds in every row."""
    rng = np.random.default_rng(seed)
    if Q is ABSORBING_Q:
        x0 = rng.integers(0, MASK, SHAPE)
        noised = np.full(SHAPE, MASK)
    else:
        x0 = rng.integers(0, MASK if Q is HYBRID_Q else V, SHAPE)
        noised = (x0 + rng.integers(1, V, SHAPE)) % V
    xt = np.where(np.arange(SHAPE[1]) % 2, x0, noised)
    return xt.astype(np.int32), x0.astype(np.int32)


def _log_scores(seed=0):
    return np.random.default_rng(seed).normal(0, 1.5, (*SHAPE, V)).astype(np.float32)


def _conditional_ratios(Q, xt, x0):
    """r[b, i, y] = p(y | x0) / p(x_t | x0), from the dense matrix exponential."""
    ratios = np.empty((*SHAPE, V))
    for b in range(SHAPE[0]):
        kernel = expm(float(SIGMA[b]) * Q)
        for i in range(SHAPE[1]):
            ratios[b, i] = kernel[:, x0[b, i]] / kernel[xt[b, i], x0[b, i]]
    return ratios


def _by_the_paper(Q, log_score, xt, x0):
    """Eqs. 5 and 10, term by term in float64."""
    ratios = _conditional_ratios(Q, xt, x0)
    loss = np.zeros(SHAPE)
    for b, i in np.ndindex(SHAPE):
        x = xt[b, i]
        for y in range(V):
            if y != x:
                r, log_s = ratios[b, i, y], float(log_score[b, i, y])
                constant = r * (np.log(r) - 1) if r > 0 else 0
                loss[b, i] += Q[x, y] * (np.exp(log_s) - r * log_s + constant)
    return loss


def test_score_entropy_is_the_double_sum_of_the_paper(case):
    graph, Q = case
    xt, x0 = _tokens(Q)
    log_score = _log_scores()
    loss, _ = _loss_and_grad(graph, log_score, SIGMA, xt, x0)
    # Terms r |log s| of size 1e3 * 5 cancel down to the loss: relative to the largest of a row.
    expected = _by_the_paper(Q, log_score, xt, x0)
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    assert np.all(loss[:, ::2] > 0)


def test_gradient_is_weight_times_score_minus_ratio(case):
    graph, Q = case
    xt, x0 = _tokens(Q)
    log_score = _log_scores()
    _, grad = _loss_and_grad(graph, log_score, SIGMA, xt, x0)
    expected = Q[xt] * (np.exp(np.float64(log_score)) - _conditional_ratios(Q, xt, x0))
    np.put_along_axis(expected, xt[..., None], 0, axis=-1)
    np.testing.assert_allclose(grad, expected, rtol=4e-6, atol=1e-6)


def test_the_true_conditional_ratio_has_zero_loss_and_gradient(case):
    graph, Q = case
    xt, x0 = _tokens(Q)
    ratios = _conditional_ratios(Q, xt, x0)
    # where the ratio is 0 (masked, y != x0) the minimum lies at minus infinity: exp(-60) = 1e-26
    log_score = np.log(np.maximum(ratios, np.exp(-60)))
    loss, grad = _loss_and_grad(graph, log_score, SIGMA, xt, x0)
    size = (ratios * (1 + np.abs(np.log(np.maximum(ratios, 1e-30))))).max(-1)
    assert np.all(np.abs(loss) <= 8 * EPS * size)
    # d exp(z) = exp(z) dz: log_score itself is rounded to 2^-24 of its size, 7 at most
    assert np.all(np.abs(grad) <= 16 * EPS * size[..., None])


def test_a_zero_ratio_costs_its_score():
    graph = graph_module.absorbing(3)
    xt, x0 = _tokens(ABSORBING_Q)
    ratios = _conditional_ratios(ABSORBING_Q, xt, x0)
    for log_score_of_zero in [-5.0, -20.0]:
        log_score = np.where(ratios > 0, np.log(np.maximum(ratios, 1e-30)), log_score_of_zero)
        loss, _ = _loss_and_grad(graph, log_score, SIGMA, xt, x0)
        # two tokens that are not x0, each with the weight 1 of Q[mask, y]
        expected = np.where(xt == MASK, 2 * np.exp(log_score_of_zero), 0)
        size = ratios * (1 + np.abs(np.log(np.maximum(ratios, 1e-30))))
        assert np.all(np.abs(loss - expected) <= 8 * EPS * (1 + size.max(-1)))


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_score_entropy_is_not_negative(case, scale):
    graph, Q = case
    for seed in range(3):
        xt, x0 = _tokens(Q, seed)
        log_score = np.random.default_rng(seed).normal(0, scale, (*SHAPE, V))
        loss, _ = _loss_and_grad(graph, log_score, SIGMA, xt, x0)
        ratios = _conditional_ratios(Q, xt, x0)
        size = (ratios * (1 + np.abs(log_score))).max(-1)
        assert np.all(loss >= -8 * EPS * size)


def test_unmasked_positions_give_exactly_nothing():
    graph = graph_module.absorbing(3)
    _, x0 = _tokens(ABSORBING_Q)
    for scale in [1, 1000]:  # also where exp(log_score) overflows
        loss, grad = _loss_and_grad(graph, scale * _log_scores(), SIGMA, x0, x0)
        np.testing.assert_array_equal(loss, 0)
        np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("entry", [-60.0, 3.0, 200.0])  # exp(200) overflows float32
def test_the_entry_at_xt_is_ignored(case, entry):
    graph, Q = case
    xt, x0 = _tokens(Q)
    log_score = _log_scores()
    changed = log_score.copy()
    np.put_along_axis(changed, xt[..., None], entry, axis=-1)
    loss, grad = _loss_and_grad(graph, log_score, SIGMA, xt, x0)
    changed_loss, changed_grad = _loss_and_grad(graph, changed, SIGMA, xt, x0)
    np.testing.assert_array_equal(loss, changed_loss)
    np.testing.assert_array_equal(grad, changed_grad)
    np.testing.assert_array_equal(np.take_along_axis(grad, xt[..., None], axis=-1), 0)


def test_masked_position_is_cross_entropy_plus_a_penalty_on_the_normaliser():
    # DESIGN section 2, with log_score = z - log(expm1(sigma)) - log(V - 1) and z over real tokens.
    graph = graph_module.absorbing(3)
    _, x0 = _tokens(ABSORBING_Q)
    xt = np.full(SHAPE, MASK, np.int32)
    z = np.float64(_log_scores()[..., :MASK])
    expm1 = np.expm1(np.float64(SIGMA))[:, None]
    log_score = np.zeros((*SHAPE, V))
    log_score[..., :MASK] = z - np.log(expm1[..., None]) - np.log(MASK)
    loss, _ = _loss_and_grad(graph, log_score, SIGMA, xt, x0)
    z_at_x0 = np.take_along_axis(z, x0[..., None], axis=-1)[..., 0]
    u = logsumexp(z, axis=-1) - np.log(MASK)
    expected = (np.exp(u) - 1 - u + logsumexp(z, axis=-1) - z_at_x0) / expm1
    # at sigma = 1e-3 the terms r log r are 7 times the loss
    np.testing.assert_allclose(loss, expected, rtol=4e-6)


def _uniform_from_statistics(z, sigma, xt, x0):
    """The uniform score entropy from logsumexp of z off x_t, z[x0], z[x_t] and mean(z)."""
    size = len(z)
    stay = np.expm1(sigma) / (np.expm1(sigma) + size)  # p(y | x0) / p(x0 | x0) for y != x0
    total = np.exp(logsumexp(np.delete(z, xt)))
    sum_off_xt = size * z.mean() - z[xt]
    if xt == x0:
        weighted = stay * sum_off_xt
        constant = (size - 1) * stay * (np.log(stay) - 1)
    else:
        weighted = sum_off_xt - z[x0] + z[x0] / stay
        constant = -(size - 2) + (-np.log(stay) - 1) / stay
    return (total - weighted + constant) / size


def test_uniform_score_entropy_needs_four_statistics():
    graph = graph_module.uniform(V)
    xt, x0 = _tokens(UNIFORM_Q)
    z = _log_scores()
    loss, _ = _loss_and_grad(graph, z, SIGMA, xt, x0)
    for b, i in np.ndindex(SHAPE):
        expected = _uniform_from_statistics(
            np.float64(z[b, i]), float(SIGMA[b]), xt[b, i], x0[b, i]
        )
        np.testing.assert_allclose(loss[b, i], expected, rtol=2e-6)


def test_uniform_graph_of_many_states_at_little_noise():
    # The published constant, 1 - V / (expm1(sigma) + V), is 0 in float32 here, and its log NaN.
    size = 32768
    sigma = np.array([1e-4, 1e-2, 20], np.float32)
    z = np.random.default_rng(0).normal(0, 0.5, (3, 2, size)).astype(np.float32)
    xt, x0 = np.array([[5, 7]] * 3), np.array([[5, 9]] * 3)
    loss, grad = _loss_and_grad(graph_module.uniform(size), z, sigma, xt, x0)
    assert np.all(np.isfinite(loss)) and np.all(np.isfinite(grad))
    for b, i in np.ndindex(3, 2):
        expected = _uniform_from_statistics(
            np.float64(z[b, i]), float(sigma[b]), xt[b, i], x0[b, i]
        )
        np.testing.assert_allclose(loss[b, i], expected, rtol=1e-5)


SCHEDULES = {
    "loglinear": (noise_module.loglinear(1e-3), lambda t: -np.log(1 - 0.999 * t)),
    "geometric": (noise_module.geometric(1e-4, 20.0), lambda t: 1e-4 * 2e5**t),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dwdse_loss_is_dsigma_times_the_sum_over_positions(case, schedule):
    graph, Q = case
    noise, sigma_at = SCHEDULES[schedule]
    t = np.array([0.05, 0.3, 0.6, 0.9], np.float32)
    xt, x0 = _tokens(Q)
    scale = np.random.default_rng(1).normal(0, 1, (*SHAPE, V))

    @jax.jit
    def loss_and_calls(t, xt, x0):
        calls = []

        def score_fn(tokens, sigma):
            calls.append((tokens, sigma))
            return DenseScore(tokens, jnp.array(scale, jnp.float32) + sigma[:, None, None])

        return dwdse_loss(graph, noise, score_fn, t, xt, x0), calls

    loss, calls = loss_and_calls(jnp.array(t), jnp.array(xt), jnp.array(x0))
    assert loss.shape == t.shape and len(calls) == 1
    np.testing.assert_array_equal(calls[0][0], xt)
    for b, time in enumerate(np.float64(t)):
        sigma = sigma_at(time)
        np.testing.assert_allclose(calls[0][1][b], sigma, rtol=4e-6)
        dsigma = (sigma_at(time + 1e-6) - sigma_at(time - 1e-6)) / 2e-6
        kernel = expm(sigma * Q)
        expected = 0.0
        for i in range(SHAPE[1]):
            x = xt[b, i]
            r = kernel[:, x0[b, i]] / kernel[x, x0[b, i]]
            log_s = scale[b, i] + sigma
            constant = np.where(r > 0, r * (np.log(np.maximum(r, 1e-300)) - 1), 0)
            terms = Q[x] * (np.exp(log_s) - r * log_s + constant)
            expected += dsigma * (terms.sum() - terms[x])
        np.testing.assert_allclose(loss[b], expected, rtol=1e-5)


def test_expected_loss_is_least_at_the_ratios_of_the_marginal(case):
    graph, Q = case
    sigma = 0.7
    p0 = np.array([0.5, 0.3, 0.2, 0]) if graph.mask_id else np.array([0.4, 0.3, 0.2, 0.1])
    kernel = expm(sigma * Q)
    joint = kernel * p0  # [x_t, x0]
    pairs = np.argwhere(joint > 0)  # one row of the batch each: the expectation is exact
    xt, x0 = jnp.array(pairs[:, :1]), jnp.array(pairs[:, 1:])
    probs = jnp.array(joint[joint > 0], jnp.float32)
    sigmas = jnp.full(len(pairs), sigma, jnp.float32)

    @jax.jit
    @jax.value_and_grad
    def expected_loss(table):
        return probs @ score_entropy(graph, table[xt], sigmas, xt, x0).sum(-1)

    pt = kernel @ p0
    truth = jnp.array(np.log(pt)[None] - np.log(pt)[:, None], jnp.float32)
    least, grad = expected_loss(truth)
    np.testing.assert_allclose(grad, np.zeros((V, V)), atol=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(5):
        step = rng.normal(0, 0.3, (V, V))
        other, other_grad = expected_loss(truth + jnp.array(step, jnp.float32))
        assert other > least + 1e-3
        assert np.abs(other_grad).max() > 1e-2


def test_the_prior_term_is_the_largest_divergence_from_the_noised_guess(case):
    graph, Q = case
    kernel, count = expm(2.0 * Q), graph.num_tokens
    guess = kernel[:, :count].mean(-1)
    wanted = max(entropy(kernel[:, x0], guess) for x0 in range(count))
    np.testing.assert_allclose(prior_kl(graph, jnp.array(2.0)), wanted, rtol=1e-5)
