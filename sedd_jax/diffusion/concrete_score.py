"""Concrete score matching: squared error of the ratios.

References:
  Meng et al., Concrete Score Matching: Generalized Score Matching for Discrete Data, 2022 (arXiv
    2211.00802).
  Lou, Meng and Ermon, Discrete Diffusion Modeling by Estimating the Ratios of the Data
    Distribution, 2024 (arXiv 2310.16834), Eq. 4: the objective that score entropy replaces.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.graph import Graph, over_positions
from sedd_jax.diffusion.importance import NoisedBatch
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.objective import NamedObjective
from sedd_jax.diffusion.score import ScoreFn
from sedd_jax.diffusion.score_entropy import Target, squared_terms, target


@dataclasses.dataclass(frozen=True)
class ConcreteScoreMatching(NamedObjective):
    """dsigma / expm1(sigma) * ((s_y - r_y) / r)^2 / 2, summed over y != x_t and positions.

    r_y = p(y | x0) / p(x_t | x0) is the ratio given x0, whose mean given x_t is the true one, so
    the minimum is at the true ratios. Two helps: ratios are exponentials, so they are positive; and
    r, the ratio to x0 of a token that has moved, is the unit of the error: it is about 1 / sigma
    at small noise, where its square would be all of the loss. No bound.
    """

    def __call__(
        self,
        graph: Graph,
        noise: Noise,
        score_fn: ScoreFn,
        batch: NoisedBatch,
        x0: Int[Array, "B L"],
    ) -> Float[Array, ""]:
        sigma = noise.sigma(batch.t)
        odds, limit = over_positions(jnp.expm1(sigma)), graph.limit[batch.xt]
        of_token = graph.limit[: graph.num_tokens].mean()  # not that of x0, which would weight x0
        unit = (1 / odds + of_token) / jnp.where(limit > 0, limit, 1)
        rate = batch.weight * noise.dsigma(batch.t) / len(x0)
        weight = over_positions(rate) / odds / unit**2 * (limit > 0)
        ratios = target(graph, sigma, batch.xt, x0)

        def terms(of_states, *fields):
            return squared_terms(Target(*fields), of_states.states, of_states.log_score)

        score = score_fn(batch.xt, sigma)
        return score.weighted(terms, ratios, batch.free(weight))
