"""The likelihood of a score model and the bound on it (Theorem 3.6), both without sampling."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp
from scipy.special import xlogy

from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.reverse import reverse_rate
from sedd_jax.diffusion.score_entropy import quadrature_quantiles
from sedd_jax.experiment.build import Components
from sedd_jax.model.score_model import Params
from sedd_jax.verification.exact.law import denoising_kernel
from sedd_jax.verification.exact.objectives import denoising_losses
from sedd_jax.verification.exact.space import Law, Space, float64

PerClean = Float[np.ndarray, "C"]
TINY = 1e-300  # stands for a probability that the solver has made negative


class BoundTerms(NamedTuple):
    """The bound on -log p(x_0) for every clean sequence x_0, in nats, by parts.

    Attributes:
      prior: KL of p(x_1 | x_0) to the law that the reverse process starts from.
      diffusion: integral of the DWDSE loss over t in [t_min, 1].
      reconstruction: -log of the final denoising step, E over x_t at t_min.
    """

    prior: PerClean
    diffusion: PerClean
    reconstruction: PerClean

    @property
    def total(self) -> PerClean:
        """The bound."""
        return self.prior + self.diffusion + self.reconstruction


def base_law(space: Space, noise: Noise, data: Law) -> Law:
    """Returns the law of the data noised to t = 1.

    Of `space.guess()`: what a likelihood is started from. It differs from the limit by the share
    exp(-sigma(1)) of tokens that are not noised, without which the prior term would be infinite
    under the absorbing graph.
    """
    return data @ space.transition(_sigma(noise, 1.0))


def exact_nll(
    components: Components, params: Params, space: Space, base: Law, t_min: float
) -> PerClean:
    """Returns -log p(x_0) of the learned reverse process, for every clean x_0.

    Solves the master equation d p / d t = -R p of the continuous-time reverse process (Eq. 3) from
    t = 1 to t_min, then takes the denoising step.

    Args:
      components: graph, noise and score model.
      params: of the score model.
      space: all sequences.
      base: the law at t = 1.
      t_min: where the denoising step takes over.
    """
    _, rates, _ = _compiled(components, space)

    def generator(time, law=None):
        del law
        return -space.generator(np.float64(rates(params, time)))

    def change(time, law):
        return generator(time) @ law

    solution = solve_ivp(
        change, (1.0, t_min), base, method="BDF", jac=generator, rtol=1e-7, atol=1e-11
    )
    if not solution.success:
        raise FloatingPointError(f"The master equation could not be solved: {solution.message}")
    law = solution.y[:, -1]
    probs = law @ denoising_kernel(components, params, space, t_min)
    return -np.log(np.maximum(probs, TINY))


def exact_bound(
    components: Components,
    params: Params,
    space: Space,
    base: Law,
    t_min: float,
    num_nodes: int = 128,
) -> BoundTerms:
    """Returns the bound for every clean x_0: sums over all x_t, Gauss-Legendre quadrature over t.

    Args:
      components: graph, noise and score model.
      params: of the score model.
      space: all sequences.
      base: the law at t = 1 that the likelihood starts from.
      t_min: where the denoising step takes over.
      num_nodes: times at which the loss is evaluated, more densely near both ends.
    """
    noise = components.noise
    forward = space.transition(_sigma(noise, 1.0))[space.clean]
    prior = (xlogy(forward, forward) - xlogy(forward, base)).sum(-1)
    unit, weights = quadrature_quantiles(num_nodes)
    times = t_min + (1 - t_min) * unit
    losses = np.stack([loss_at(components, params, space, t) for t in times])
    kernel = denoising_kernel(components, params, space, t_min)
    forward = space.transition(_sigma(noise, t_min))[space.clean]
    return BoundTerms(prior, (1 - t_min) * weights @ losses, -xlogy(forward, kernel.T).sum(-1))


def loss_at(components: Components, params: Params, space: Space, t: float) -> PerClean:
    """Returns the DWDSE loss at time t, expected over x_t, for every clean x_0."""
    log_scores, _, losses = _compiled(components, space)
    log_score = np.float64(log_scores(params, t))
    with float64():
        dsigma = float(components.noise.dsigma(jnp.float64(t)))
        return dsigma * np.asarray(losses(log_score, _sigma(components.noise, t)))


def _sigma(noise, t):
    with float64():
        return float(noise.sigma(jnp.float64(t)))


@functools.lru_cache(maxsize=32)
def _compiled(components, space):
    """The log scores and reverse rates of all sequences at t, and the loss given the former."""
    graph, noise, model = components
    xt = jnp.asarray(space.states)

    @jax.jit
    def log_scores(params, t):
        return model.apply(params, xt, jnp.broadcast_to(noise.sigma(t), len(xt)))

    @jax.jit
    def rates(params, t):
        return noise.dsigma(t) * reverse_rate(graph, xt, jnp.exp(log_scores(params, t)))

    @jax.jit
    def losses(log_score, sigma):
        return denoising_losses(space, log_score, space.clean, sigma)

    return log_scores, rates, losses
