"""Guidance: ratios of a distribution tilted towards a condition, as products of ratios.

By Bayes' rule the ratios of the conditional distribution are the unconditional ones times factors
of the condition's evidence, and guidance takes a power g of these factors:

    p_t(y | c) / p_t(x | c)  =  p_t(y) / p_t(x) * p_t(c | y) / p_t(c | x)
    score_y                  =  p_t(y) / p_t(x) * (p_t(c | y) / p_t(c | x)) ** g

With g = 1 this is the conditional distribution, with 0 the unconditional one. Any other g makes
them the ratios of p_t(x | c) ** g p_t(x) ** (1 - g), normalised, at every t. No process of noising
has these distributions, so samples do not have the one of t = 0, see docs/maths.md. The factors
come from two answers of a network that was trained with and without the condition (`guided`), from
a classifier of noised tokens, or from the probability of a constraint given noised tokens
(`times_evidence`).

Under the absorbing graph the true ratios of a masked position sum to 1 / expm1(sigma), whatever the
condition; the product does not. `on_schedule` scales it, so that the condition decides which token
a position takes, and not when.

References:
  Ho and Salimans, Classifier-Free Diffusion Guidance, 2022 (arXiv 2207.12598);
  Nisonoff et al., Unlocking Guidance for Discrete State-Space Diffusion and Flow Models, 2024
    (arXiv 2406.01572): products of rates, both kinds, and the first-order factors;
  Schiff et al., Simple Guidance Mechanisms for Discrete Diffusion Models, 2024 (arXiv 2412.10193):
    products of the probabilities of a step;
  Rojas et al., Improving Classifier-Free Guidance in Masked Diffusion, 2025 (arXiv 2507.08965):
    that unscaled rates take the masks off too early.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.graph import Graph, align
from sedd_jax.diffusion.score import ScoreFn
from sedd_jax.diffusion.temperature import MAX_LOG_RATIO
from sedd_jax.errors import BadInput

# (tokens [N, L], sigma [N]) -> log p_t(c | x_t) [N]; for first-order factors the tokens are one-hot
# rows, float [N, L, V], in which it is differentiable
Evidence = Callable[[Array, Float[Array, "N"]], Float[Array, "N"]]

RATIOS = ("exact", "first_order")
MAX_NEIGHBOURS = 2**14  # of a sequence, each evaluated at every step
MAX_FACTORS = 2**22  # L V numbers of a sequence, 16 MiB


def guided(conditional: ScoreFn, unconditional: ScoreFn, weight: float) -> ScoreFn:
    """Returns the ratios of a network asked with and without the condition (classifier-free).

    Two evaluations of the network's blocks, and one pass over the vocabulary.

    Args:
      conditional: the network, told the condition.
      unconditional: the same network, not told.
      weight: g; 1 and 0 take one evaluation alone.
    """
    if weight in (0, 1):
        return conditional if weight else unconditional
    return lambda xt, sigma: conditional(xt, sigma).guided(unconditional(xt, sigma), weight)


def times_evidence(
    score_fn: ScoreFn, evidence: Evidence, power: float, ratios: str, num_states: int
) -> ScoreFn:
    """Returns the ratios times powers of p_t(c | y) / p_t(c | x), written out.

    Args:
      score_fn: the ratios without the evidence.
      evidence: log p_t(c | x_t).
      power: g.
      ratios: one of `RATIOS`, how the factors are computed.
      num_states: V.
    """
    if power == 0:
        return score_fn
    factors = {"exact": exact_factors, "first_order": first_order_factors}[ratios]
    return lambda xt, sigma: score_fn(xt, sigma).times(
        power * factors(evidence, xt, sigma, num_states)
    )


def exact_factors(
    evidence: Evidence, xt: Int[Array, "B L"], sigma: Float[Array, "B"], num_states: int
) -> Float[Array, "B L V"]:
    """Returns log p_t(c | y) - log p_t(c | x) of all L V neighbours y, each evaluated.

    From an impossible x possible neighbours come first, by a factor of 1e20, and then all others.

    Args:
      evidence: log p_t(c | x_t).
      xt: noised tokens, x.
      sigma: total noise.
      num_states: V.

    Raises:
      BadInput: too many neighbours.
    """
    _check_size(xt.shape[1], num_states, MAX_NEIGHBOURS, "take first-order factors")
    rows, states = len(xt), jnp.arange(num_states, dtype=xt.dtype)
    repeated, noise = (jnp.repeat(x, num_states, axis=0) for x in (xt, sigma))

    def of_position(i):
        tokens = repeated.at[:, i].set(jnp.tile(states, rows))
        return _log_probs(evidence, tokens, noise).reshape(rows, num_states)

    log_prob = jnp.moveaxis(jax.lax.map(of_position, jnp.arange(xt.shape[1])), 0, 1)
    here = jnp.take_along_axis(log_prob, xt[..., None], axis=-1)
    stuck = jnp.where(jnp.isneginf(log_prob), 0, log_prob + MAX_LOG_RATIO)
    return jnp.where(jnp.isneginf(here), stuck, log_prob - here)


def first_order_factors(
    evidence: Evidence, xt: Int[Array, "B L"], sigma: Float[Array, "B"], num_states: int
) -> Float[Array, "B L V"]:
    """Returns the same to first order in the one-hot tokens: one gradient.

    Exact for evidence that is linear in each of them. Else the error of a factor is of second order
    in a change of a whole token, which is not small.

    Args:
      evidence: log p_t(c | x_t), differentiable in one-hot tokens.
      xt: noised tokens, x.
      sigma: total noise.
      num_states: V.

    Raises:
      BadInput: too many numbers.
    """
    _check_size(xt.shape[1], num_states, MAX_FACTORS, "guide by a condition of the model")
    one_hot = jax.nn.one_hot(xt, num_states)
    gradient = jax.grad(lambda tokens: _log_probs(evidence, tokens, sigma).sum())(one_hot)
    return gradient - jnp.take_along_axis(gradient, xt[..., None], axis=-1)


def _log_probs(evidence, tokens, sigma):
    """The evidence of rows; BadInput: it is not one number for each."""
    log_prob = evidence(tokens, sigma)
    if jnp.shape(log_prob) != sigma.shape:
        raise BadInput(
            "A classifier or a constraint must return log p(c | noised tokens) of every row, an "
            f"array of shape {sigma.shape} here, and returned one of {jnp.shape(log_prob)}."
        )
    return log_prob


def _check_size(length, num_states, most, instead):
    if length * num_states > most:
        raise BadInput(
            f"{length} positions of {num_states} states have {length * num_states:,} neighbours a "
            f"sequence, and at most {most:,} are weighed: {instead}, or take shorter rows."
        )


def embedded(
    table: Float[Array, "V D"], tokens: Int[Array, "*s"] | Float[Array, "*s V"]
) -> Float[Array, "*s D"]:
    """Returns the rows of a table, of token ids or of one-hot tokens: for an `Evidence`."""
    is_ids = jnp.issubdtype(tokens.dtype, jnp.integer)
    return table[tokens] if is_ids else tokens @ table


def on_schedule(score_fn: ScoreFn, graph: Graph) -> ScoreFn:
    """Returns the ratios, scaled where the graph says what they sum to: under the absorbing one."""
    if not graph.absorbs:
        return score_fn

    def scaled(xt, sigma):
        total = 1 / jnp.expm1(align(sigma, 2))
        return score_fn(xt, sigma).scaled_to(jnp.broadcast_to(total, xt.shape))

    return scaled
