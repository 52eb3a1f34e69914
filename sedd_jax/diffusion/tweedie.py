"""The Tweedie sampler: the best rule that treats positions independently (Theorem 4.2, Eq. 19)."""

from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.denoiser import tweedie_weights
from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.sampler import GridSampler
from sedd_jax.diffusion.score import StepWeights


class Tweedie(GridSampler):
    """The exact step of one position, taken by all positions at once."""

    weighs_held_tokens = True

    def weights(
        self,
        graph: Graph,
        noise: Noise,
        xt: Int[Array, "B L"],
        total: Float[Array, "B L"],
        t: Float[Array, "B"],
        t_next: Float[Array, "B"],
    ) -> StepWeights:
        return tweedie_weights(graph, xt, total, noise.sigma(t) - noise.sigma(t_next))
