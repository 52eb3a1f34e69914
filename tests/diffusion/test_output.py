"""Softmax outputs as scores: against Bayes' rule on all sequences, which knows no closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import graph as graphs
from sedd_jax.diffusion.output import OUTPUTS

N, L = 3, 2
GRAPHS = {
    "absorb": graphs.absorbing(N),
    "uniform": graphs.uniform(N),
    "hybrid": graphs.hybrid(N, mask=0.6),
}
RTOL = 2e-5


def kernel(graph, sigma):
    """p(x_t | x0) of a token, [x0, x_t], as powers of a matrix of small steps."""
    states = np.arange(graph.num_states)
    rate = np.float64(graph.rate(jnp.asarray(states)))  # [from, to]
    step = np.eye(len(states)) + rate * sigma / 2**24
    for _ in range(24):
        step = step @ step
    return step[:N]


def bayes(graph, sigma):
    """By x_t and position: the two softmaxes [V, V, L, N], and the ratios of p_t [V, V, L, V]."""
    data = np.random.default_rng(0).dirichlet(np.ones(N**L)).reshape(N, N)
    token = kernel(graph, sigma)
    marginal = np.einsum("ab,ax,by->xy", data, token, token)
    joint = np.einsum("ab,ax,by->xyab", data, token, token)
    denoiser = np.stack([joint.sum(3), joint.sum(2)], axis=2)
    first = np.einsum("ab,by->ya", data, token)  # of x0 at the first position, given the other
    second = np.einsum("ab,ax->xb", data, token)
    others = np.broadcast_arrays(first[None, :, :], second[:, None, :])
    leave_one_out = np.stack(others, axis=2)
    ratios = np.stack(
        np.broadcast_arrays(marginal.T[None, :, :], marginal[:, None, :]), axis=2
    ) / marginal[:, :, None, None].clip(1e-300)
    softmaxes = {"denoiser": denoiser, "leave_one_out": leave_one_out}
    normalised = {name: x / x.sum(-1, keepdims=True).clip(1e-300) for name, x in softmaxes.items()}
    return normalised, ratios, marginal


@pytest.mark.parametrize("sigma", [1e-3, 0.7, 6.0])
@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_true_softmax_gives_the_true_ratios(name, kind, sigma):
    graph = GRAPHS[name]
    softmaxes, ratios, _ = bayes(graph, sigma)
    xt = np.stack(np.indices((graph.num_states,) * L), axis=-1).reshape(-1, L)
    logits = np.log(softmaxes[kind].clip(1e-30)).reshape(-1, L, N)
    logits += np.random.default_rng(1).normal(0, 3, logits.shape[:2])[..., None]
    if graph.mask_id is not None:  # its logit is ignored
        logits = np.concatenate([logits, np.full((*logits.shape[:2], 1), 7.0)], axis=-1)
    score = OUTPUTS[kind](graph).dense(
        jnp.full(len(xt), sigma), jnp.asarray(xt), jnp.asarray(logits, jnp.float32)
    )
    changes = (np.asarray(graph.limit)[xt] > 0)[..., None]
    got, wanted = np.exp(score.log_score), ratios.reshape(got_shape := score.log_score.shape)
    np.testing.assert_allclose(
        np.where(changes, got, 0), np.where(changes, wanted, 0), rtol=RTOL, err_msg=str(got_shape)
    )
    posterior = np.exp(score.log_posterior)[..., :N]
    wanted = softmaxes["denoiser"].reshape(-1, L, N)
    np.testing.assert_allclose(
        np.where(changes, posterior, 0), np.where(changes, wanted, 0), atol=2e-5
    )


@pytest.mark.parametrize("total_noise", [1e-6, 0.01, 50.0, 200.0])
@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("name", [*GRAPHS, "few masks"])
def test_gradients_are_finite_everywhere(name, kind, total_noise):
    graph = graphs.hybrid(N, mask=1e-12) if name == "few masks" else GRAPHS[name]
    xt = jnp.asarray(np.stack(np.indices((graph.num_states,) * L), axis=-1).reshape(-1, L))
    sigma = jnp.full(len(xt), total_noise)
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 30, (*xt.shape, graph.num_states)))

    def total(logits):
        score = OUTPUTS[kind](graph).dense(sigma, xt, logits)
        changes = (graph.limit[xt] > 0)[..., None]
        finite = changes & (score.log_posterior > -jnp.inf)
        return (
            jnp.where(changes, score.log_score, 0).sum()
            + jnp.where(finite, score.log_posterior, 0).sum()
        )

    gradient = jax.grad(total)(logits)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0.1


def test_ratios_of_a_sure_prediction_do_not_cancel():
    """V of 50,000 at little noise: the least ratio is 2e-9, far below the rounding of 1 - q_x."""
    graph, sigma = graphs.uniform(50_000), 1e-4
    logits = np.zeros(50_000, np.float32)
    logits[7] = 40.0  # the others share exp(-40) * 50,000 = 2e-13
    score = OUTPUTS["denoiser"](graph).dense(
        jnp.array([sigma]), jnp.array([[7]]), jnp.asarray(logits)[None, None]
    )
    least = np.expm1(sigma) / (np.expm1(sigma) + 50_000)
    share = np.exp(-40.0)
    wanted = least + share * 50_000 + share * 50_000 / np.expm1(sigma)
    np.testing.assert_allclose(np.exp(score.log_score[0, 0, 0]), wanted, rtol=1e-3)
