"""The denoiser: the clean token, or the one at less noise, given x_t (Section 4.2)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sedd_jax.diffusion.graph import ByLimit, Graph, PerState, align, times_limit
from sedd_jax.diffusion.score import StepWeights


def staggered_score(
    graph: Graph, score: Float[Array, "B L V"], delta_sigma: Float[Array, "B"]
) -> Float[Array, "B L V"]:
    """Returns exp(-delta_sigma Q) score, the first factor of Eq. 19.

    Times p_t(x_t), this is the marginal p_(t - dt) at each y: it inverts the forward step.

    Args:
      graph: the token graph.
      score: positive ratios p_t(y) / p_t(x_t), 1 at y = x_t.
      delta_sigma: sigma(t) - sigma(t - dt), non-negative.
    """
    return graph.inverse_transition(score, delta_sigma)


def tweedie_probs(
    graph: Graph,
    xt: Int[Array, "B L"],
    score: Float[Array, "B L V"],
    delta_sigma: Float[Array, "B"],
) -> Float[Array, "B L V"]:
    """Returns the weights of x_(t - dt) given x_t, per position (Theorem 4.2, Eq. 19).

    With exact scores of a single token this is Bayes' rule; over sequences it is the optimum
    among rules that treat positions independently. Rows sum to 1 for any score, but those of
    an approximate score may have negative entries: clamp before sampling. Rounding of the score is
    multiplied by exp(delta_sigma): at float32, delta_sigma = 11 costs 2e-5 of a probability and 16
    costs 3e-3 (uniform graph, geometric noise to 20: the first of 16 and of 8 steps).

    Args:
      graph: the token graph.
      xt: noised tokens.
      score: positive ratios, 1 at y = x_t.
      delta_sigma: sigma(t) - sigma(t - dt), non-negative.
    """
    likelihood = graph.transposed_transition(xt, delta_sigma)
    return staggered_score(graph, score, delta_sigma) * likelihood


def denoise_probs(
    graph: Graph, xt: Int[Array, "B L"], score: Float[Array, "B L V"], sigma: Float[Array, "B"]
) -> Float[Array, "B L N"]:
    """Returns the weights of the clean token given x_t, N = graph.num_tokens (Theorem 4.1, Eq. 18).

    The Tweedie step that removes all noise, without the mask column, not renormalised. An unmasked
    position keeps weight 1 on itself.

    Args:
      graph: the token graph.
      xt: noised tokens.
      score: positive ratios, 1 at y = x_t.
      sigma: total noise.
    """
    return tweedie_probs(graph, xt, score, sigma)[..., : graph.num_tokens]


def tweedie_weights(
    graph: Graph,
    xt: Int[Array, "B L"],
    total: Float[Array, "B L"],
    delta_sigma: Float[Array, "B ..."],
) -> StepWeights:
    """Returns `tweedie_probs` as step weights, given the sum of the ratios over y != x_t.

    Args:
      graph: the token graph.
      xt: noised tokens.
      total: sum of the ratios over y != x_t.
      delta_sigma: sigma(t) - sigma(t - dt), non-negative; of every row, or of every position.
    """
    delta = align(delta_sigma, 2)
    limit, moved, growth = graph.limit[xt], -jnp.expm1(-delta), jnp.expm1(delta)
    cut = None if graph.equal_limit == 0 else times_limit(graph, moved, 1 + total)
    staggered = 1 + growth * (1 - limit - limit * total)  # of x_t, whose score is 1
    likelihood = jnp.exp(-delta) + moved * limit
    return StepWeights(scale=growth * limit, cut=cut, stay=staggered * likelihood)


def denoise_weights(
    graph: Graph,
    xt: Int[Array, "B L"],
    total: Float[Array, "B L"],
    sigma: Float[Array, "B"],
) -> StepWeights:
    """Returns `denoise_probs` as step weights: a masked position must leave the mask, for a token.

    Args:
      graph: the token graph.
      xt: noised tokens.
      total: sum of the ratios over y != x_t.
      sigma: total noise.
    """
    weights = tweedie_weights(graph, xt, total, sigma)
    stay = jnp.where(xt < graph.num_tokens, weights.stay, 0)
    return weights._replace(stay=stay, cut=cut_off_mask(weights.cut, jnp.ones(xt.shape, bool)))


def cut_off_mask(cut: PerState | None, where: Bool[Array, "B L"]) -> PerState | None:
    """Returns a cut that leaves no weight to the mask at the given positions.

    Args:
      cut: of `tweedie_weights`; unless it is by state, no weight leads to a mask.
      where: positions.
    """
    return cut.without_mask(where) if isinstance(cut, ByLimit) else cut
