"""D3PM: diffusion in discrete time, trained by its own variational bound.

References:
  Austin et al., Structured Denoising Diffusion Models in Discrete State-Spaces, 2021 (arXiv
    2107.03006): Eqs. 1 and 5; the step is a sum over predictions of the clean token, Eq. 4.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.cross_entropy import nll_terms
from sedd_jax.diffusion.graph import Graph, leading, over_positions
from sedd_jax.diffusion.importance import NoisedBatch
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.objective import NamedObjective
from sedd_jax.diffusion.score import ScoreFn
from sedd_jax.errors import BadInput

MAX_STEPS = 2**16


@dataclasses.dataclass(frozen=True)
class D3PM(NamedObjective):
    """The bound of a reverse process of T steps, plus a share of the cross-entropy.

        sum over i = 2 .. T of  KL(q(x_(i-1) | x_i, x0) | p(x_(i-1) | x_i))  -  log p(x0 | x_1)
        p(x_(i-1) | x_i) = sum over x0 of  q(x_(i-1) | x_i, x0) p(x0 | x_i)

    with x_i at t = i / T, estimated at one i for every sequence, T times its term. For T to
    infinity it is the integral of the score entropy.

    Attributes:
      steps: T, at most 2**16: above it, times in single precision no longer tell i from i - 1.
      auxiliary: factor of the cross-entropy, -log p(x0 | x_i) summed over i; 0 for the bound alone.
    """

    steps: int = 1000
    auxiliary: float = 0.0

    needs_softmax = True

    def __post_init__(self):
        if not 1 <= self.steps <= MAX_STEPS:
            raise BadInput(f"steps must be from 1 to {MAX_STEPS}, got {self.steps}.")
        if not 0 <= self.auxiliary < math.inf:
            raise BadInput(f"auxiliary must not be negative or infinite, got {self.auxiliary}.")

    @property
    def grid(self) -> int:
        return self.steps

    def __call__(
        self,
        graph: Graph,
        noise: Noise,
        score_fn: ScoreFn,
        batch: NoisedBatch,
        x0: Int[Array, "B L"],
    ) -> Float[Array, ""]:
        index = jnp.round(batch.t * self.steps)
        sigma, before = noise.sigma(index / self.steps), noise.sigma((index - 1) / self.steps)
        before = jnp.where(index > 1, before, 0)  # the first step ends at clean tokens

        def terms(of_states, xt, x0, sigma, before):
            at_xt, at_x0 = of_states.at(xt), of_states.at(x0)
            limit = leading(graph.limit[of_states.states], at_xt.ndim)
            limit_here = graph.limit[xt][..., None]

            def reaches(noise, at_xt):  # p(x_t | y) after so much noise, where y may be x_t
                stayed, moved = jnp.exp(-noise)[..., None], -jnp.expm1(-noise)[..., None]
                return jnp.where(at_xt, stayed, 0) + moved * limit_here

            def earlier(clean, log_stays):
                """Of x_(i-1), per p(x_t | x_(i-1)), where x0 has the probabilities `clean`."""
                here = reaches(sigma, True)
                others = jnp.where(limit_here > 0, reaches(sigma, False), 1)
                evidence = jnp.where(at_xt, here, others)
                everything = jnp.exp(log_stays) / here - jnp.expm1(log_stays) / others
                stayed, moved = jnp.exp(-before)[..., None], -jnp.expm1(-before)[..., None]
                return stayed * clean / evidence + moved * limit * everything

            truth = earlier(at_x0, jnp.where(x0 == xt, 0, -jnp.inf)[..., None])
            model = earlier(jnp.exp(of_states.log_posterior), of_states.log_stays[..., None])
            q = truth * reaches(sigma - before, at_xt)
            ratio = jnp.where(q > 0, truth, 1) / jnp.where(q > 0, model, 1)
            kl = jnp.where(q > 0, q * jnp.log(ratio), 0)
            return kl + self.auxiliary * nll_terms(of_states, x0)

        weight = batch.weight * self.steps / len(x0)
        positions = (jnp.broadcast_to(over_positions(x), x0.shape) for x in (sigma, before))
        score = score_fn(batch.xt, sigma)
        weight = over_positions(weight) * (graph.limit[batch.xt] > 0)
        return score.weighted(terms, (batch.xt, x0, *positions), batch.free(weight))

    def is_bound(self, graph: Graph) -> bool:
        return self.auxiliary == 0
