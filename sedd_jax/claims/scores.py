"""Section 3 and Theorems 4.1 and 4.2: kernels, objectives and reverse steps, given the truth.

Everything is computed twice: by the formulas that training and sampling use, and from the law
of all sequences, p_t = expm(sigma Q) p_0, by Bayes' rule. In float64, so that limits can be tight.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import expm

from sedd_jax.claims.report import Claim, Section, Table
from sedd_jax.diffusion.categorical import jump_law
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.reverse import euler_probs
from sedd_jax.diffusion.tweedie import denoise_probs, tweedie_probs
from sedd_jax.enumeration.objectives import (
    concrete_score_matching,
    denoising_score_entropy,
    exact_ratios,
    explicit_score_entropy,
    implicit_score_entropy,
)
from sedd_jax.enumeration.scores import exact_model, exact_params
from sedd_jax.enumeration.space import Law, Space, float64, product_law

SIGMAS = (0.05, 0.7, 3.0)
ROUNDING = 1e-10  # of sums of some thousand float64 terms of order 1


def check_scores(space: Space, noise: Noise, data: Law, seed: int = 0) -> Section:
    """Returns the claims on kernels, scores, objectives and single reverse steps.

    Args:
      space: all sequences.
      noise: the schedule, for the rate of the Euler step.
      data: law of the data.
      seed: of the random scores that the true ones are compared with.
    """
    with float64():
        rng = np.random.default_rng(seed)
        table, step_claims = _steps(space, noise, data, rng)
        claims = [*_kernels(space, data), *_objectives(space, data, rng), *step_claims]
    return Section("True scores, objectives and single steps", claims, [table])


def _kernels(space, data):
    generator = space.forward_generator()
    model, params = exact_model(space), exact_params(data)
    kernel_error = score_error = 0.0
    for sigma in SIGMAS:
        dense = expm(sigma * generator)  # [to, from]
        kernel_error = max(kernel_error, np.abs(space.transition(sigma) - dense.T).max())
        marginal = dense @ data
        reached = marginal > 0
        got = np.exp(model.apply(params, space.states, np.full(len(data), sigma)))
        error = (got - exact_ratios(space, marginal)) * marginal[:, None, None]
        score_error = max(score_error, np.abs(error[reached]).max())
    return [
        Claim("Eq. 14: product of token kernels - expm of sequence Q", kernel_error, "<=", 1e-12),
        Claim("p_t(x) (exact score model - ratio of p_t from expm)", score_error, "<=", 1e-12),
    ]


def _objectives(space, data, rng):
    """That all objectives have the truth as their minimum and differ by constants only."""
    gradients, elsewhere, spread = [], [], []
    for sigma in SIGMAS:
        marginal = data @ space.transition(sigma)
        truth = np.log(np.maximum(exact_ratios(space, marginal), 1e-30))
        tables = [truth + rng.normal(0, 0.5, truth.shape) for _ in range(3)]

        def denoising(log_score, sigma=sigma):
            return denoising_score_entropy(space, log_score, data, sigma)

        def objectives(log_score, marginal=marginal, denoising=denoising):
            return [
                denoising(log_score),
                explicit_score_entropy(space, log_score, marginal),
                implicit_score_entropy(space, log_score, marginal),
                concrete_score_matching(space, jnp.exp(log_score), marginal),
            ]

        gradient = jax.jit(jax.jacrev(objectives))
        gradients += [np.abs(g).max() for g in gradient(truth)]
        elsewhere += [np.abs(g).max() for g in gradient(tables[0])]
        values = np.array([jax.jit(objectives)(table)[:3] for table in tables])
        differences = values - values[:, :1]  # each a constant, whatever the scores
        spread.append(np.ptp(differences, axis=0).max())
    return [
        Claim(
            "gradient at the true score of Eqs. 4, 5, 6 and the loss, Eq. 10",
            max(gradients),
            "<=",
            ROUNDING,
        ),
        Claim("... and at scores that are off by half a nat", min(elsewhere), ">=", 1e-4),
        Claim(
            "explicit, implicit and denoising score entropy: change of their differences "
            "between random scores",
            max(spread),
            "<=",
            ROUNDING,
        ),
    ]


def _steps(space, noise, data, rng):
    """Theorem 4.1 and 4.2 on steps of several sizes from the middle of the schedule."""
    times = [(0.5, s) for s in (0.0, 0.25, 0.4, 0.45, 0.475)]
    rows, posterior_error, product_error, margin = [], 0.0, 0.0, np.inf
    over_euler = np.inf
    for t, s in times:
        sigma_t, sigma_s = float(noise.sigma(t)), float(noise.sigma(s)) if s > 0 else 0.0
        marginal = data @ space.transition(sigma_t)
        reached = np.flatnonzero(marginal > 1e-12)
        posterior = _posterior(space, data, sigma_t, sigma_s)[reached]
        probs = _probs(space, noise, data, t, s, sigma_t - sigma_s)
        probs = {name: np.asarray(table)[reached] for name, table in probs.items()}
        marginals = _position_marginals(space, posterior)
        product_error = max(product_error, np.abs(probs["tweedie"] - marginals).max())
        if s == 0:
            tokens = space.graph.num_tokens
            clean = _probs_denoise(space, data, sigma_t)[reached]
            posterior_error = np.abs(clean - marginals[..., :tokens]).max()
            continue
        weight = marginal[reached]
        loss = {name: _mean_kl(weight, posterior, table) for name, table in probs.items()}
        for _ in range(5):
            other = probs["tweedie"] * np.exp(rng.normal(0, 0.1, probs["tweedie"].shape))
            margin = min(margin, _mean_kl(weight, posterior, other) - loss["tweedie"])
        over_euler = min(over_euler, loss["euler"] - loss["tweedie"])
        rows.append((t - s, loss["tweedie"], loss["euler"]))
    table = Table(
        "Mean KL of the true reverse step from t = 0.5 to each rule, nats",
        ("step dt", "Tweedie", "Euler"),
        rows,
    )
    claims = [
        Claim("Thm. 4.1, Eq. 18: denoiser - posterior of x_0", posterior_error, "<=", ROUNDING),
        Claim("Eq. 19: Tweedie step - posterior of x_s per token", product_error, "<=", ROUNDING),
        Claim("Thm. 4.2: least KL of 20 disturbed rules - KL of Tweedie", margin, ">=", 1e-6),
        # under absorbing log-linear noise the two are equal, up to rounding
        Claim("Thm. 4.2: least KL of Euler - KL of Tweedie", over_euler, ">=", -1e-12),
    ]
    return table, claims


def _probs(space, noise, data, t, s, delta_sigma):
    """The laws of every position after one step, by both rules."""
    count = len(space.states)
    graph, xt = space.graph, jnp.asarray(space.states)
    sigma = jnp.full(count, float(noise.sigma(t)))
    score = jnp.exp(exact_model(space).apply(exact_params(data), xt, sigma))
    rate_times_step = jnp.full(count, float(noise.dsigma(t)) * (t - s))
    return {
        "tweedie": jump_law(tweedie_probs(graph, xt, score, jnp.full(count, delta_sigma))),
        "euler": jump_law(euler_probs(graph, xt, score, rate_times_step)),
    }


def _probs_denoise(space, data, sigma):
    xt, sigma = jnp.asarray(space.states), jnp.full(len(space.states), sigma)
    score = jnp.exp(exact_model(space).apply(exact_params(data), xt, sigma))
    return np.asarray(denoise_probs(space.graph, xt, score, sigma))


def _posterior(space, data, sigma_t, sigma_s):
    """p(x_s | x_t) by Bayes' rule, [x_t, x_s]; rows of impossible x_t are 0."""
    joint = (data @ space.transition(sigma_s))[:, None] * space.transition(sigma_t - sigma_s)
    total = joint.sum(0)
    return (joint / np.where(total > 0, total, 1)).T


def _position_marginals(space, laws):
    """The law of every position under laws of sequences: [M, S] to [M, L, V]."""
    one_hot = space.states[..., None] == np.arange(space.graph.num_states)
    return np.einsum("ms,siv->miv", laws, np.float64(one_hot))


def _mean_kl(weight, posterior, probs):
    """E over x_t of KL(posterior | product of the rule's laws)."""
    product = product_law(probs / probs.sum(-1, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(posterior > 0, posterior * np.log(posterior / product), 0)
    return float(weight @ terms.sum(-1))
