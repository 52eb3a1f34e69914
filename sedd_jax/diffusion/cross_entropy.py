"""Cross-entropy of the clean token: what trains a network whose output is a softmax.

References:
  Sahoo et al., Simple and Effective Masked Diffusion Language Models, 2024 (arXiv 2406.07524), Eq.
    10, and Shi et al., Simplified and Generalized Masked Diffusion for Discrete Data, 2024 (arXiv
    2406.04329), Eq. 6: under the absorbing graph it is the bound on the negative log-likelihood.
  Ou et al., Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions of
    Clean Data, 2024 (arXiv 2406.03736): the same as lambda-DCE, where lambda = 1 - exp(-sigma), for
    a network that is not told the noise.
  Haxholli et al., Efficient Perplexity Bound and Ratio Matching in Discrete Diffusion Language
    Models, 2025 (arXiv 2507.04341): denoising cross-entropy, with ratios from the softmax.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.graph import Graph, over_positions
from sedd_jax.diffusion.importance import NoisedBatch
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.objective import NamedObjective
from sedd_jax.diffusion.score import OfStates, ScoreFn


@dataclasses.dataclass(frozen=True)
class CrossEntropy(NamedObjective):
    """-log p(x0 | x_t), times dsigma / expm1(sigma), summed over the positions that can have moved.

    Under the absorbing graph this is the score entropy of a softmax at masked positions, so its
    integral is the diffusion term of the bound (docs/maths.md, section 4). Under others it has its
    minimum at the true distribution, and is no bound.

    Attributes:
      weighted: False leaves the factor dsigma / expm1(sigma) out: the same minimum, no bound.
    """

    weighted: bool = True

    needs_softmax = True

    def __call__(
        self,
        graph: Graph,
        noise: Noise,
        score_fn: ScoreFn,
        batch: NoisedBatch,
        x0: Int[Array, "B L"],
    ) -> Float[Array, ""]:
        sigma = noise.sigma(batch.t)
        weight = batch.weight / len(x0)
        if self.weighted:
            weight *= noise.dsigma(batch.t) / jnp.expm1(sigma)
        score = score_fn(batch.xt, sigma)
        weight = over_positions(weight) * (graph.limit[batch.xt] > 0)
        return score.weighted(nll_terms, (x0,), batch.free(weight))

    def is_bound(self, graph: Graph) -> bool:
        return self.weighted and graph.absorbs


def nll_terms(of_states: OfStates, x0: Int[Array, "*s"]) -> Float[Array, "*s C"]:
    """Returns -log p(x0 | x_t) at the state x0, and 0 at others: terms of `Score.weighted`."""
    return -jnp.where(of_states.at(x0), of_states.log_posterior, 0)
