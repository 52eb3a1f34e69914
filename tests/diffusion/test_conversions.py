"""The formulas of docs/maths.md that no function computes, against the functions that exist."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion import noise as noises
from sedd_jax.diffusion.denoiser import denoise_probs, tweedie_probs
from sedd_jax.diffusion.euler import euler_probs
from sedd_jax.diffusion.importance import guess_proposal, propose
from sedd_jax.diffusion.objective import dwdse_loss
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.diffusion.score_entropy import prior_kl, score_entropy

N, B, L = 4, 3, 5
SIGMA = jnp.array([0.1, 0.7, 3.0])
RTOL = 1e-4


@pytest.fixture(params=["absorb", "uniform"])
def graph(request):
    return graphs.GRAPHS[request.param](N)


def random_tokens(graph, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, graph.num_states, (B, L)), jnp.int32)


def random_posterior(graph, xt):
    """A distribution of x0 that x_t allows: under the absorbing graph an unmasked token stays."""
    posterior = np.random.default_rng(1).dirichlet(np.ones(N), (B, L))
    if graph.mask_id is not None:
        unmasked = np.asarray(xt) != graph.mask_id
        posterior[unmasked] = np.eye(N)[np.asarray(xt)[unmasked]]
    return jnp.asarray(posterior, jnp.float32)


def score_of(graph, posterior, xt, sigma):
    """The snippet of docs/maths.md, section 2."""
    tokens = jnp.arange(graph.num_tokens)
    kernel = jax.vmap(lambda s: graph.transition(tokens, s))(sigma)  # p(y | x0) [B, N, V]
    here = jnp.swapaxes(jnp.take_along_axis(kernel, xt[:, None], axis=-1), 1, 2)  # [B, L, N]
    return jnp.where(posterior > 0, posterior / here, 0) @ kernel  # [B, L, V]


def test_posterior_to_score_and_back(graph):
    xt = random_tokens(graph)
    posterior = random_posterior(graph, xt)
    score = score_of(graph, posterior, xt, SIGMA)
    at_xt = jnp.take_along_axis(score, xt[..., None], axis=-1)
    np.testing.assert_allclose(at_xt, 1, rtol=RTOL)
    back = denoise_probs(graph, xt, score, SIGMA)
    np.testing.assert_allclose(back, posterior, atol=1e-4)


def test_the_closed_forms_of_both_graphs():
    uniform, absorbing = graphs.uniform(N), graphs.absorbing(N)
    expm1 = jnp.expm1(SIGMA)[:, None, None]
    xt = random_tokens(uniform)
    posterior = random_posterior(uniform, xt)
    score = score_of(uniform, posterior, xt, SIGMA)
    others = np.arange(N) != np.asarray(xt)[..., None]
    decay = jnp.exp(-SIGMA)[:, None, None]
    to_posterior = expm1 / N * (score - (1 - decay) * score.mean(-1, keepdims=True))
    np.testing.assert_allclose(to_posterior[others], posterior[others], atol=1e-4)
    stays = jnp.take_along_axis(posterior, xt[..., None], axis=-1)
    to_score = 1 + N / expm1 * posterior - N / (expm1 + N) * stays
    np.testing.assert_allclose(to_score[others], score[others], rtol=RTOL)

    xt = jnp.full((B, L), absorbing.mask_id)
    score = score_of(absorbing, posterior, xt, SIGMA)
    np.testing.assert_allclose(score[..., :N], posterior / expm1, rtol=RTOL)


def test_a_softmax_denoiser_has_the_cross_entropy_over_t_as_its_loss():
    graph, noise = graphs.absorbing(N), noises.loglinear()
    logits = jnp.asarray(np.random.default_rng(2).normal(0, 1, (B, L, N)), jnp.float32)
    t = jnp.array([0.1, 0.5, 0.9])
    sigma, xt = noise.sigma(t), jnp.full((B, L), graph.mask_id)
    x0 = random_tokens(graphs.uniform(N))
    log_probs = jax.nn.log_softmax(logits)
    log_score = log_probs - jnp.log(jnp.expm1(sigma))[:, None, None]
    back = jax.nn.softmax(log_score)
    np.testing.assert_allclose(back, jnp.exp(log_probs), rtol=RTOL)
    log_score = jnp.concatenate([log_score, jnp.zeros((B, L, 1))], axis=-1)
    loss = noise.dsigma(t)[:, None] * score_entropy(graph, log_score, sigma, xt, x0)
    cross_entropy = -jnp.take_along_axis(log_probs, x0[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss, cross_entropy / t[:, None], rtol=RTOL)
    np.testing.assert_allclose(noise.dsigma(t) / jnp.expm1(sigma), 1 / t, rtol=RTOL)


def test_euler_is_tweedie_under_absorbing_log_linear_noise_whatever_the_score():
    graph, noise = graphs.absorbing(N), noises.loglinear()
    t, t_next = jnp.array([0.9, 0.5, 0.2]), jnp.array([0.6, 0.45, 0.1])
    score = jnp.asarray(np.random.default_rng(3).gamma(1, 1, (B, L, N + 1)), jnp.float32)
    xt = random_tokens(graph)
    score = jnp.where(jax.nn.one_hot(xt, N + 1, dtype=bool), 1, score)
    euler = euler_probs(graph, xt, score, noise.dsigma(t) * (t - t_next))
    tweedie = tweedie_probs(graph, xt, score, noise.sigma(t) - noise.sigma(t_next))
    np.testing.assert_allclose(euler, tweedie, atol=2e-5)
    # a normalised score: a mask goes with probability (t - s) / t
    score = jnp.full((B, L, N + 1), 1 / (N * jnp.expm1(noise.sigma(t))[:, None, None]))
    xt = jnp.full((B, L), graph.mask_id)
    probs = tweedie_probs(graph, xt, score.at[..., N].set(1), noise.sigma(t) - noise.sigma(t_next))
    np.testing.assert_allclose(1 - probs[:, 0, N], (t - t_next) / t, rtol=RTOL)


def test_the_prior_term_of_the_absorbing_graph_is_the_unmasked_share_times_log_n():
    sigma = noises.loglinear(1e-3).sigma(jnp.array(1.0))
    got = prior_kl(graphs.absorbing(N), sigma)
    np.testing.assert_allclose(got, 1e-3 * np.log(N), rtol=1e-3)


def test_the_weighted_loss_is_the_mean_over_masks():
    graph, noise = graphs.absorbing(N), noises.loglinear()
    x0 = random_tokens(graphs.uniform(N))
    z = jnp.asarray(np.random.default_rng(4).normal(0, 1, (B, L, N)), jnp.float32)
    proposal = guess_proposal(graph, noise, 1e-3)
    draw = jax.jit(lambda u: propose(jax.random.key(0), proposal, graph, noise, u, x0))(
        jnp.array([0.3, 0.6, 0.8])
    )

    def score_fn(xt, sigma):
        scaled = z - jnp.log(jnp.expm1(sigma))[:, None, None] - jnp.log(N)
        return DenseScore(xt, jnp.concatenate([scaled, jnp.zeros((B, L, 1))], axis=-1))

    got = draw.weight * dwdse_loss(graph, noise, score_fn, draw.t, draw.xt, x0)
    u = jax.nn.logsumexp(z, axis=-1) - jnp.log(N)
    log_probs = jax.nn.log_softmax(z)
    per_mask = jnp.exp(u) - 1 - u - jnp.take_along_axis(log_probs, x0[..., None], axis=-1)[..., 0]
    masked = draw.xt == graph.mask_id
    mean = jnp.where(masked, per_mask, 0).sum(-1) / masked.sum(-1)
    # within a cell of t the guess is held at its middle
    np.testing.assert_allclose(got, (1 - 1e-3) * L * mean, rtol=0.01)
