"""The reverse rates (Eq. 3), and the Euler sampler (tau-leaping, Eq. 17)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.graph import Graph, align
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.sampler import GridSampler
from sedd_jax.diffusion.score import StepWeights


def reverse_rate(
    graph: Graph, xt: Int[Array, "B L"], score: Float[Array, "B L V"]
) -> Float[Array, "B L V"]:
    """Returns the reverse rates of leaving x_t: score_y Q[x_t, y], minus their sum at x_t (Eq. 3).

    Not multiplied by dsigma. Rows sum to 0.

    Args:
      graph: the token graph.
      xt: noised tokens.
      score: positive ratios; ignored at y = x_t.
    """
    at_xt = jax.nn.one_hot(xt, graph.num_states, dtype=bool)
    rates = jnp.where(at_xt, 0, graph.transposed_rate(xt) * score)
    return jnp.where(at_xt, -rates.sum(-1, keepdims=True), rates)


def euler_probs(
    graph: Graph,
    xt: Int[Array, "B L"],
    score: Float[Array, "B L V"],
    rate_times_step: Float[Array, "B"],
) -> Float[Array, "B L V"]:
    """Returns the Euler step's weights one_hot(x_t) + rate_times_step * reverse_rate (Eq. 17).

    Rows sum to 1; a step too large for the rates makes the entry at x_t negative: clamp before
    sampling.

    Args:
      graph: the token graph.
      xt: noised tokens.
      score: positive ratios, 1 at y = x_t.
      rate_times_step: dsigma(t) dt.
    """
    stay = jax.nn.one_hot(xt, graph.num_states)
    return stay + align(rate_times_step, 3) * reverse_rate(graph, xt, score)


def euler_weights(
    graph: Graph,
    xt: Int[Array, "B L"],
    total: Float[Array, "B L"],
    rate_times_step: Float[Array, "B"],
) -> StepWeights:
    """Returns `euler_probs` as step weights, given the sum of the ratios over y != x_t.

    Args:
      graph: the token graph.
      xt: noised tokens.
      total: sum of the ratios over y != x_t.
      rate_times_step: dsigma(t) dt.
    """
    rate = align(rate_times_step, 2) * graph.limit[xt]
    return StepWeights(scale=rate, cut=None, stay=1 - rate * total)


class Euler(GridSampler):
    """The Euler step of the reverse rates (Eq. 17)."""

    def weights(
        self,
        graph: Graph,
        noise: Noise,
        xt: Int[Array, "B L"],
        total: Float[Array, "B L"],
        t: Float[Array, "B"],
        t_next: Float[Array, "B"],
    ) -> StepWeights:
        return euler_weights(graph, xt, total, noise.dsigma(t) * (t - t_next))
