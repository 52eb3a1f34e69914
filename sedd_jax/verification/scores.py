"""Section 3 and Theorems 4.1 and 4.2: kernels, objectives and reverse steps, given the truth.

Everything is computed twice: by the formulas that training and sampling use, and from the
distribution of all sequences, p_t = expm(sigma Q) p_0, by Bayes' rule. In float64, so that limits
can be tight.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import expm
from scipy.special import entr, rel_entr

from sedd_jax.diffusion.categorical import jump_probs
from sedd_jax.diffusion.denoiser import denoise_probs, tweedie_probs
from sedd_jax.diffusion.euler import euler_probs
from sedd_jax.diffusion.noise import Noise
from sedd_jax.display.table import Table
from sedd_jax.verification.exact.scores import (
    concrete_score_matching,
    denoising_score_entropy,
    exact_model,
    exact_params,
    exact_ratios,
    explicit_score_entropy,
    implicit_score_entropy,
)
from sedd_jax.verification.exact.space import Distribution, Space, product_distribution
from sedd_jax.verification.report import Claim, Section

SIGMAS = (0.05, 0.7, 3.0)
ROUNDING = 1e-10  # of sums of some thousand float64 terms of order 1


def check_scores(
    space: Space, schedules: dict[str, Noise], data: Distribution, seed: int = 0
) -> Section:
    """Returns the claims on kernels, scores, objectives and single reverse steps.

    Args:
      space: all sequences.
      schedules: noise schedules by name, "loglinear" and "geometric".
      data: distribution of the data.
      seed: random seed of the scores and rules that the true ones are compared with.
    """
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        programs = _compiled(space, data)
        claims = [*_kernels(space, data, programs), *_objectives(space, data, rng)]
        tables = []
        for name, noise in schedules.items():
            # Euler and Tweedie are one rule here
            tied = space.graph.absorbs and name == "loglinear"
            table, step_claims = _steps(name, space, noise, data, rng, tied, programs)
            tables.append(table)
            claims += step_claims
    return Section("True scores, objectives and single steps", claims, tables)


def _compiled(space, data):
    """Functions of all sequences: the true scores [S, L, V] at sigma, and a step by all rules."""
    graph, xt = space.graph, jnp.asarray(space.states)

    def scores(sigma):
        sigmas = jnp.full(len(xt), sigma)
        return jnp.exp(exact_model(space).apply(exact_params(data), xt, sigmas))

    def step(score, sigma, delta_sigma, rate_times_step):
        sigma, delta, rate = (jnp.full(len(xt), x) for x in (sigma, delta_sigma, rate_times_step))
        return {
            "denoise": denoise_probs(graph, xt, score, sigma),
            "tweedie": jump_probs(tweedie_probs(graph, xt, score, delta)),
            "euler": jump_probs(euler_probs(graph, xt, score, rate)),
        }

    return jax.jit(scores), jax.jit(step)


def _kernels(space, data, programs):
    scores, _ = programs
    generator = space.forward_generator()
    kernel_errors, score_errors = [], []
    for sigma in SIGMAS:
        dense = expm(sigma * generator)  # [to, from]
        kernel_errors.append(np.abs(space.transition(sigma) - dense.T).max())
        marginal = dense @ data
        error = (scores(sigma) - exact_ratios(space, marginal)) * marginal[:, None, None]
        score_errors.append(np.abs(error[marginal > 0]).max())
    of_kernels = "Eq. 14: product of token kernels - expm of sequence Q"
    of_scores = "p_t(x) (exact score model - ratio of p_t from expm)"
    return [
        Claim(of_kernels, np.max(kernel_errors), "<=", 1e-12),
        Claim(of_scores, np.max(score_errors), "<=", 1e-12),
    ]


def _objectives(space, data, rng):
    """All objectives have the truth as their minimum, and they differ by constants only."""
    gradients, elsewhere, spread = [], [], []
    for sigma in SIGMAS:
        marginal = data @ space.transition(sigma)
        truth = np.log(np.maximum(exact_ratios(space, marginal), 1e-30))
        tables = [truth + rng.normal(0, 0.5, truth.shape) for _ in range(3)]

        def objectives(log_score, marginal=marginal, sigma=sigma):
            return [
                denoising_score_entropy(space, log_score, data, sigma),
                explicit_score_entropy(space, log_score, marginal),
                implicit_score_entropy(space, log_score, marginal),
                concrete_score_matching(space, jnp.exp(log_score), marginal),
            ]

        evaluate = jax.jit(lambda table, f=objectives: (f(table), jax.jacrev(f)(table)))
        gradients += [np.abs(g).max() for g in evaluate(truth)[1]]
        elsewhere += [np.abs(g).max() for g in evaluate(tables[0])[1]]
        values = np.array([evaluate(table)[0][:3] for table in tables])
        # each minus the first is a constant in the scores
        spread.append(np.ptp(values - values[:, :1], axis=0).max())
    constants = (
        "explicit, implicit and denoising score entropy: change of their differences between "
        "random scores"
    )
    return [
        _rounding("gradient at the true score of Eqs. 4, 5, 6 and the loss, Eq. 10", gradients),
        Claim("... and at scores that are off by half a nat", np.min(elsewhere), ">=", 1e-4),
        _rounding(constants, spread),
    ]


def _steps(name, space, noise, data, rng, tied, programs):
    """Theorems 4.1 and 4.2 on steps of several sizes from the middle of the schedule."""
    scores, step = programs
    t, rows = 0.5, []
    errors = {"denoiser": [], "step": [], "optimum": []}
    over_tweedie = {"euler": [], "disturbed": []}
    sigma_t, dsigma = float(noise.sigma(t)), float(noise.dsigma(t))
    marginal = data @ space.transition(sigma_t)
    reached = np.flatnonzero(marginal > 1e-12)
    weight, score = marginal[reached], scores(sigma_t)
    for s in (0.0, 0.25, 0.4, 0.45, 0.475):
        sigma_s = float(noise.sigma(s)) if s > 0 else 0.0
        posterior = _posterior(space, data, sigma_t, sigma_s)[reached]
        marginals = _position_marginals(space, posterior)
        probs = step(score, sigma_t, sigma_t - sigma_s, dsigma * (t - s))
        probs = {rule: np.asarray(table)[reached] for rule, table in probs.items()}
        errors["step"].append(np.abs(probs["tweedie"] - marginals).max())
        if s == 0:
            clean = marginals[..., : space.graph.num_tokens]
            errors["denoiser"].append(np.abs(probs["denoise"] - clean).max())
            continue
        loss = {rule: _mean_kl(weight, posterior, probs[rule]) for rule in ("tweedie", "euler")}
        # the least KL of independent positions is the total correlation of the posterior
        correlation = weight @ (entr(marginals).sum((-1, -2)) - entr(posterior).sum(-1))
        errors["optimum"].append(abs(loss["tweedie"] - correlation))
        over_tweedie["euler"].append(loss["euler"] - loss["tweedie"])
        for _ in range(5):
            other = probs["tweedie"] * np.exp(rng.normal(0, 1e-3, probs["tweedie"].shape))
            over_tweedie["disturbed"].append(_mean_kl(weight, posterior, other) - loss["tweedie"])
        rows.append((t - s, loss["tweedie"], loss["euler"]))
    title = f"Mean KL of the true reverse step from t = 0.5 to each rule, nats, {name} noise"
    table = Table(title, ("step dt", "Tweedie", "Euler"), rows)
    euler, disturbed = np.min(over_tweedie["euler"]), np.min(over_tweedie["disturbed"])
    return table, [
        _rounding(f"{name}: Thm. 4.1, Eq. 18: denoiser - posterior of x_0", errors["denoiser"]),
        _rounding(f"{name}: Eq. 19: Tweedie step - posterior of x_s per token", errors["step"]),
        _rounding(f"{name}: Thm. 4.2: |KL of Tweedie - least possible|", errors["optimum"]),
        Claim(f"{name}: ... KL of rules 1e-3 off - KL of Tweedie", disturbed, ">=", 1e-12),
        _rounding(f"{name}: |KL of Euler - KL of Tweedie|, one rule", abs(euler))
        if tied
        else Claim(f"{name}: Thm. 4.2: KL of Euler - KL of Tweedie", euler, ">=", 1e-5),
    ]


def _rounding(statement, errors):
    return Claim(statement, np.max(errors), "<=", ROUNDING)


def _posterior(space, data, sigma_t, sigma_s):
    """p(x_s | x_t) by Bayes' rule, [x_t, x_s]; rows of impossible x_t are 0."""
    joint = (data @ space.transition(sigma_s))[:, None] * space.transition(sigma_t - sigma_s)
    total = joint.sum(0)
    return (joint / np.where(total > 0, total, 1)).T


def _position_marginals(space, joint):
    """The marginals of every position of distributions over sequences: [M, S] to [M, L, V]."""
    one_hot = space.states[..., None] == np.arange(space.graph.num_states)
    return np.einsum("ms,siv->miv", joint, np.float64(one_hot))


def _mean_kl(weight, posterior, probs):
    """E over x_t of KL(posterior | product of the rule's distributions)."""
    product = product_distribution(probs / probs.sum(-1, keepdims=True))
    return float(weight @ rel_entr(posterior, product).sum(-1))
