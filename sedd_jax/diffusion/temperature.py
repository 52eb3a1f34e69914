"""Temperature and top-p: departures from a model's distribution.

With both settings at 1 samples follow the model's distribution. Any other value samples another
distribution, whose likelihood is not the one that is reported for the model. A `TokenFilter` acts
on which token a changing position takes, and not on when it changes; or, by `Score.tempered`, on
the conditional distribution of a token given all others, and so on both.

References:
  Holtzman et al., The Curious Case of Neural Text Degeneration, 2019 (arXiv 1904.09751): top-p.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sedd_jax.errors import BadInput

MIN_TEMPERATURE = 1e-6  # float32 log-weights divided by much less overflow
# The log of the largest ratio to x_t, 1e20, also where x_t is outside of the nucleus: in float32 a
# position then leaves x_t with probability 1, and its ratios times exp(sigma) do not overflow.
MAX_LOG_RATIO = 46.0
HALVINGS = 16  # of an interval of some 17 nats: the nucleus is found to 3e-4
TIES = 1e-3  # nats; a logit that is computed twice, by different products, differs by less


class TokenFilter(NamedTuple):
    """Weights to draw a token with: weights ** (1 / temperature), then the nucleus of these.

    Attributes:
      temperature: 1 for the model's distribution, 0 for the most likely token (greedy).
      top_p: draw from the smallest set of tokens with this probability (nucleus); 1 for all.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def check(self) -> None:
        """Raises BadInput for a value out of range."""
        if not 0 <= self.temperature < float("inf"):
            raise BadInput(
                f"temperature must be 0 (greedy) or more, and finite, got {self.temperature}."
            )
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise BadInput(
                f"temperature must be at least {MIN_TEMPERATURE}, or 0 for greedy, got "
                f"{self.temperature}."
            )
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p must be in (0, 1], got {self.top_p}.")

    def __call__(self, log_weights: Float[Array, "*s V"]) -> Float[Array, "*s V"]:
        """Returns the weights to draw with, the largest of them 1.

        Args:
          log_weights: of the model, need not be normalised; -inf for no weight.
        """
        if self.temperature == 0:
            return jax.nn.one_hot(log_weights.argmax(-1), log_weights.shape[-1])
        scaled = (log_weights - log_weights.max(-1, keepdims=True)) / self.temperature
        return nucleus(jnp.exp(scaled), self.top_p)


NO_FILTER = TokenFilter()


def nucleus(weights: Float[Array, "*s V"], top_p: float) -> Float[Array, "*s V"]:
    """Returns the weights of the fewest tokens whose share of the sum reaches `top_p`, 0 elsewhere.

    Ties go to the first tokens. With top_p = 1 all are kept, even if sums round.

    Args:
      weights: non-negative, not all zero along the last axis.
      top_p: in (0, 1].
    """
    if top_p == 1:
        return weights
    order = jnp.argsort(weights, axis=-1, descending=True, stable=True)
    mass = jnp.cumsum(jnp.take_along_axis(weights, order, -1), axis=-1)
    before = jnp.concatenate([jnp.zeros_like(mass[..., :1]), mass[..., :-1]], axis=-1)
    rank = jnp.argsort(order, axis=-1)  # of every token in that order
    kept = jnp.take_along_axis(before < top_p * mass[..., -1:], rank, -1)
    return jnp.where(kept | (rank == 0), weights, 0)  # at least one, if top_p rounds to 0


class Bounds(NamedTuple):
    """Of the tempered ratios of a position.

    Attributes:
      excess: to subtract from its log-ratios.
      floor: the least log-ratio in the nucleus, before that; -inf for none.
    """

    excess: Float[Array, "*s"]
    floor: Float[Array, "*s"]


def conditional_bounds(log_ratios: Float[Array, "*s V"], top_p: float) -> Bounds:
    """Returns what makes of tempered ratios those of the nucleus, without overflow.

    Where x_t is outside of the nucleus, its ratio to the likeliest state becomes 1e-20, not 0.

    Args:
      log_ratios: divided by the temperature; 0 at x_t, -inf for no state.
      top_p: in (0, 1].
    """
    top = log_ratios.max(-1)
    floor = top + _nucleus_floor(log_ratios - top[..., None], top_p)
    excess = top - MAX_LOG_RATIO
    return Bounds(jnp.where(floor <= 0, jnp.maximum(excess, 0), excess), floor)


def _nucleus_floor(log_weights, top_p):
    """The log-weight of the least likely state that `top_p` needs, those as likely within `TIES`.

    By bisection, which sorts nothing; the largest log-weight is 0.
    """
    weights = jnp.exp(log_weights)
    enough = top_p * weights.sum(-1)
    if top_p == 1:
        return jnp.full_like(enough, -jnp.inf)

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        kept = jnp.where(log_weights >= middle[..., None], weights, 0).sum(-1)
        reached = kept >= enough
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    # states below the start have less than 1 - top_p together
    start = jnp.full_like(enough, jnp.log((1 - top_p) / log_weights.shape[-1]))
    low, _ = jax.lax.fori_loop(0, HALVINGS, halve, (start, jnp.zeros_like(enough)))
    return low - TIES
