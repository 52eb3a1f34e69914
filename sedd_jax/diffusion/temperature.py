"""Temperature and top-p: departures from a model's distribution in which token is drawn, not when.

With both settings at 1 tokens follow the model's distribution. Any other value samples another
distribution, whose likelihood is not the one that is reported for the model.

References:
  Holtzman et al., The Curious Case of Neural Text Degeneration, 2019 (arXiv 1904.09751): top-p.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sedd_jax.errors import BadInput

MIN_TEMPERATURE = 1e-6  # float32 log-weights divided by much less overflow


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
