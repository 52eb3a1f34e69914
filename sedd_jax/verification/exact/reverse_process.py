"""The learned reverse process without sampling: what samplers draw, the likelihood, the bound.

Distributions over all sequences are propagated through the steps of a sampler, or through the
master equation; the bound is a sum over all x_t and a quadrature over t.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp
from scipy.special import xlogy

from sedd_jax.diffusion.categorical import jump_probs
from sedd_jax.diffusion.denoiser import denoise_weights
from sedd_jax.diffusion.euler import reverse_rate
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.score import StepWeights, total_away
from sedd_jax.diffusion.times import quadrature_quantiles
from sedd_jax.inference.sampling import sampler_named
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.score_model import Params
from sedd_jax.verification.exact.scores import denoising_losses, exact_model, exact_params
from sedd_jax.verification.exact.space import Distribution, Space, product_distribution

PerClean = Float[np.ndarray, "C"]
TINY = 1e-300  # replaces a probability that the solver has made negative


class BoundTerms(NamedTuple):
    """The bound on -log p(x_0) for every clean sequence x_0, in nats, by parts.

    Attributes:
      prior: KL of p(x_1 | x_0) to the distribution that the reverse process starts from.
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


class ReverseProcess(NamedTuple):
    """The reverse process of a score model, on all sequences of a space.

    Attributes:
      family: graph, noise and score model.
      params: of the score model.
      space: all sequences.
    """

    family: ScoreBased
    params: Params
    space: Space

    def sampler_distribution(
        self,
        *,
        steps: int,
        sampler: Callable[..., StepWeights] | str,
        t_min: float,
        denoise: bool = True,
        given: Mapping[int, int] = MappingProxyType({}),
        conditioning: str = "clamp",
    ) -> Distribution:
        """Returns the distribution of the sequences that a generator with these settings draws.

        Exact: the distribution at t = 1 is multiplied by every step as a matrix, with the weights
        that the sampler itself computes, in JAX's default precision.

        Args:
          steps: reverse steps before the final one.
          sampler: the name of a sampler on a grid of times, or its rule.
          t_min: the time at which the steps end.
          denoise: take the final denoising step.
          given: tokens that are clamped, by position.
          conditioning: see `inference.conditioning`; "resample" is the limit of infinitely many
            particles: only sequences that agree with `given`, each step weighted by its probability
            of keeping them.
        """
        graph = self.family.graph
        if conditioning != "clamp" and graph.absorbs:
            raise ValueError(f"{conditioning!r} is for graphs that do not absorb.")
        condition = {"clamp": clamped, "resample": _weighted}[conditioning]
        rule = sampler_named(sampler).weights if isinstance(sampler, str) else sampler
        programs, times = self._programs, jnp.linspace(1.0, t_min, steps + 1)
        start = np.tile(np.float64(graph.limit), (1, self.space.length, 1))
        current = product_distribution(condition(start, given))[0]
        for t, t_next in itertools.pairwise(times):
            log_score = programs.log_scores(self.params, t)
            probs = np.float64(programs.step(log_score, t, t_next, rule))
            current = current @ product_distribution(condition(probs, given))
        if denoise:
            kernel = product_distribution(condition(self._final_step(t_min), given))
            current = self.space.extend(current @ kernel)
        return current / current.sum() if condition is _weighted else current

    def first_hitting_distribution(self, start: Distribution | None = None) -> Distribution:
        """Returns the distribution of the sequences that first hitting draws, a position a call.

        Exact for scores whose normalised ratios are the same at all noise, as the true ones are:
        they are evaluated at t = 1. All orders in which masked positions can be revealed are
        equally likely.

        Args:
          start: distribution of the sequences before the first call; all masked by default.
        """
        graph, space = self.family.graph, self.space
        masked = space.states == graph.mask_id
        score = jnp.exp(self._programs.log_scores(self.params, 1.0))[..., : graph.num_tokens]
        token = np.float64(score / score.sum(-1, keepdims=True))
        position = masked / np.maximum(masked.sum(-1, keepdims=True), 1)
        current = space.limit() if start is None else start
        for _ in range(space.length):
            after = np.where(masked.any(-1), 0, current)  # sequences without a mask stay
            flow = (current[:, None] * position)[..., None] * token
            np.add.at(after, space.neighbours[..., : graph.num_tokens], flow)
            current = after
        return current

    def denoising_kernel(
        self, t: float, given: Mapping[int, int] = MappingProxyType({})
    ) -> Float[np.ndarray, "S C"]:
        """Returns the kernel of the final denoising step: [from, to a clean one].

        Args:
          t: the time at which it is taken.
          given: tokens that are clamped, by position.
        """
        return product_distribution(clamped(self._final_step(t), given))

    def nll(self, base: Distribution, t_min: float) -> PerClean:
        """Returns -log p(x_0) in nats, for every clean x_0.

        Solves the master equation d p / d t = -R p of the continuous-time reverse process (Eq. 3)
        from t = 1 to t_min, then takes the denoising step.

        Args:
          base: the distribution at t = 1.
          t_min: the time at which the denoising step is taken.
        """
        programs = self._programs

        def generator(time, probs=None):
            del probs
            rates = programs.rates(programs.log_scores(self.params, time), time)
            return -self.space.generator(np.float64(rates))

        def change(time, probs):
            return generator(time) @ probs

        solution = solve_ivp(
            change, (1.0, t_min), base, method="BDF", jac=generator, rtol=1e-7, atol=1e-11
        )
        if not solution.success:
            raise FloatingPointError(f"The master equation could not be solved: {solution.message}")
        probs = solution.y[:, -1] @ self.denoising_kernel(t_min)
        return -np.log(np.maximum(probs, TINY))

    def chain_nll(self, base: Distribution, num_steps: int) -> PerClean:
        """Returns -log p(x_0) in nats of Tweedie's steps from t = 1 to 0, for every clean x_0.

        With a softmax for p(x_0 | x_t) these are the steps of D3PM.

        Args:
          base: the distribution at t = 1.
          num_steps: their number; times are i / num_steps.
        """
        programs, rule, current = self._programs, sampler_named("tweedie").weights, base
        for t, t_next in itertools.pairwise(np.arange(num_steps, 0, -1) / num_steps):
            log_score = programs.log_scores(self.params, t)
            probs = np.float64(programs.step(log_score, t, t_next, rule))
            current = current @ product_distribution(probs)
        return -np.log(np.maximum(current @ self.denoising_kernel(1 / num_steps), TINY))

    def bound(self, base: Distribution, t_min: float, num_nodes: int = 128) -> BoundTerms:
        """Returns the bound of Theorem 3.6 for every clean x_0.

        Sums over all x_t, Gauss-Legendre quadrature over t.

        Args:
          base: the distribution at t = 1 that the likelihood starts from.
          t_min: the time at which the denoising step is taken.
          num_nodes: times at which the loss is evaluated, more densely near both ends.
        """
        unit, weights = quadrature_quantiles(num_nodes)
        losses = np.stack([self.loss_at(t) for t in t_min + (1 - t_min) * unit])
        prior, reconstruction = self.ends(base, t_min)
        return BoundTerms(prior, (1 - t_min) * weights @ losses, reconstruction)

    def ends(self, base: Distribution, t_min: float) -> tuple[PerClean, PerClean]:
        """Returns the prior term and the final step of `bound`.

        Args:
          base: the distribution at t = 1 that the likelihood starts from.
          t_min: the time at which the denoising step is taken.
        """
        noise, space = self.family.noise, self.space
        forward = space.transition(_sigma(noise, 1.0))[space.clean]
        prior = (xlogy(forward, forward) - xlogy(forward, base)).sum(-1)
        forward = space.transition(_sigma(noise, t_min))[space.clean]
        return prior, -xlogy(forward, self.denoising_kernel(t_min).T).sum(-1)

    def loss_at(self, t: float) -> PerClean:
        """Returns the DWDSE loss at time t, expected over x_t, for every clean x_0."""
        noise, programs = self.family.noise, self._programs
        log_score = np.float64(programs.log_scores(self.params, t))
        with jax.enable_x64(True):
            dsigma = float(noise.dsigma(jnp.float64(t)))
            return dsigma * np.asarray(programs.losses(log_score, _sigma(noise, t)))

    @property
    def _programs(self):
        return _compiled(self.family, self.space)

    def _final_step(self, t):
        log_score = self._programs.log_scores(self.params, t)
        return np.float64(self._programs.final_step(log_score, t))


def exact_process(space: Space, noise: Noise, data: Distribution) -> ReverseProcess:
    """Returns the reverse process with true scores, in JAX's default precision.

    Args:
      space: all sequences.
      noise: the schedule.
      data: distribution of the data.
    """
    return ReverseProcess(
        ScoreBased(space.graph, noise, exact_model(space)), exact_params(data), space
    )


def clamped(
    probs: Float[np.ndarray, "S L N"], given: Mapping[int, int]
) -> Float[np.ndarray, "S L N"]:
    """Returns the distributions of positions with given tokens clamped.

    Args:
      probs: distribution of position i in row s.
      given: tokens by position.
    """
    probs = probs.copy()
    for position, token in given.items():
        probs[:, position] = np.eye(probs.shape[-1])[token]
    return probs


def _weighted(probs, given):
    """The same with nothing but given tokens, each with the probability that it had."""
    return probs * clamped(np.ones_like(probs), given)


def reverse_distribution(space: Space, noise: Noise, data: Distribution, t: float) -> Distribution:
    """Returns the distribution at time t of the exact reverse process, started like the samplers.

    It differs from p_t only as far as the limit differs from p_1; a sampler with exact scores
    differs from it by its discretisation alone.

    Args:
      space: all sequences.
      noise: the schedule.
      data: distribution of the data.
      t: time, in [0, 1]; at 0, the data.
    """
    sigma_1, sigma_t = _sigma(noise, 1.0), _sigma(noise, t) if t > 0 else 0.0
    p_1 = data @ space.transition(sigma_1)
    weight = np.where(p_1 > 0, space.limit() / np.where(p_1 > 0, p_1, 1), 0)
    return (data @ space.transition(sigma_t)) * (space.transition(sigma_1 - sigma_t) @ weight)


def base_distribution(space: Space, noise: Noise, data: Distribution) -> Distribution:
    """Returns the distribution of the data noised to t = 1.

    That of `space.uniform_data()` is what a likelihood starts from. It differs from the limit by
    the share exp(-sigma(1)) of tokens that are not noised, without which the prior term would be
    infinite under the absorbing graph.

    Args:
      space: all sequences.
      noise: the schedule.
      data: distribution of the data.
    """
    return data @ space.transition(_sigma(noise, 1.0))


def _sigma(noise, t):
    with jax.enable_x64(True):
        return float(noise.sigma(jnp.float64(t)))


class _Programs(NamedTuple):
    """Compiled functions of all sequences of a space; log_score is [S, L, V], of all of them."""

    log_scores: Callable  # (params, t) -> log_score
    rates: Callable  # (log_score, t) -> reverse rates [S, L, V]
    losses: Callable  # (log_score, sigma) -> expected loss of every clean x_0 [C]
    step: Callable  # (log_score, t, t_next, rule) -> distributions of positions [S, L, V]
    final_step: Callable  # (log_score, t) -> the same after the denoising step [S, L, N]


@functools.lru_cache(maxsize=32)
def _compiled(family, space) -> _Programs:
    graph, noise, model = family
    xt = jnp.asarray(space.states)

    def log_scores(params, t):
        return model.apply(params, xt, noise.sigma(jnp.broadcast_to(t, len(xt))))

    def rates(log_score, t):
        return noise.dsigma(t) * reverse_rate(graph, xt, jnp.exp(log_score))

    def losses(log_score, sigma):
        return denoising_losses(space, log_score, space.clean, sigma)

    def step(log_score, t, t_next, rule):
        score = jnp.exp(log_score)
        t, t_next = (jnp.broadcast_to(time, len(xt)) for time in (t, t_next))
        weights = rule(graph, noise, xt, total_away(xt, score), t, t_next)
        return jump_probs(weights.weights(xt, score))

    def final_step(log_score, t):
        score, sigma = jnp.exp(log_score), noise.sigma(jnp.broadcast_to(t, len(xt)))
        weights = denoise_weights(graph, xt, total_away(xt, score), sigma)
        return jump_probs(weights.weights(xt, score)[..., : graph.num_tokens])

    step = jax.jit(step, static_argnums=3)
    return _Programs(*map(jax.jit, (log_scores, rates, losses)), step, jax.jit(final_step))
