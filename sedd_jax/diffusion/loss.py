"""The training loss (Algorithm 1)."""

import jax
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.importance import Draw
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.padding import zero_padding
from sedd_jax.diffusion.score import ScoreFn
from sedd_jax.diffusion.score_entropy import target


def dwdse_loss(
    graph: Graph,
    noise: Noise,
    score_fn: ScoreFn,
    t: Float[Array, "B"],
    xt: Int[Array, "B L"],
    x0: Int[Array, "B L"],
    lengths: Int[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """Returns the diffusion-weighted denoising score entropy, nats per sequence (Algorithm 1).

    To measure with; to train, differentiate `mean_dwdse_loss`.

    dsigma(t) times the score entropy summed over positions. Its integral over t, mean over x_t, is
    the diffusion term of the bound on the negative log-likelihood (Theorem 3.6, Eq. 9).

    Args:
      graph: the token graph.
      noise: the schedule.
      score_fn: maps (x_t, sigma) to a `Score`; called once.
      t: times in (0, 1].
      xt: x0 noised to sigma(t).
      x0: clean tokens.
      lengths: of the rows, None for full ones; padding loses nothing, and `score_fn` is to know of
        it by itself.
    """
    sigma = noise.sigma(t)
    wanted = target(graph, sigma, xt, x0)
    wanted = wanted._replace(weight=zero_padding(wanted.weight, lengths))
    entropy = score_fn(xt, sigma).entropy(wanted)
    return noise.dsigma(t) * entropy.sum(-1)


def mean_dwdse_loss(
    graph: Graph, noise: Noise, score_fn: ScoreFn, draw: Draw, x0: Int[Array, "B L"]
) -> Float[Array, ""]:
    """Returns the weighted mean of `dwdse_loss` over a batch: what training differentiates.

    Its gradient is by the network alone.

    Args:
      graph: the token graph.
      noise: the schedule.
      score_fn: maps (x_t, sigma) to a `Score`; called once.
      draw: times, noised tokens and weights.
      x0: clean tokens.
    """
    draw = jax.lax.stop_gradient(draw)
    sigma = noise.sigma(draw.t)
    weight = draw.weight * noise.dsigma(draw.t) / len(x0)
    return score_fn(draw.xt, sigma).weighted_entropy(target(graph, sigma, draw.xt, x0), weight)
