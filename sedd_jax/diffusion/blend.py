"""How two outputs of a network are put together, ratio by ratio."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.graph import PerState, align, at_states


class Blend(NamedTuple):
    """How the ratios of two outputs are put together: max(0, first s + second s' + offset).

    Where second s' + offset has not the sign of `second`, it counts as 0: s' is less than the noise
    that `offset` takes off, which true ratios never are.

    Attributes:
      first: factor of the ratios s of the one.
      second: factor of the ratios s' of the other.
      offset: added to the latter, the same number for all states or one that depends on them.
    """

    first: Float[Array, "*s"]
    second: Float[Array, "*s"]
    offset: PerState

    def __call__(
        self,
        ratios: Float[Array, "*s V"],
        others: Float[Array, "*s V"],
        states: Int[Array, "..."],
    ) -> Float[Array, "*s V"]:
        """Returns the blended ratios.

        Args:
          ratios: of the one output, 1 at its x_t; for one state of every position the last axis
            may be missing.
          others: of the other output.
          states: that the ratios are of, see `at_states`.
        """
        first, second = (align(x, ratios.ndim) for x in self[:2])
        offset = at_states(self.offset, states, ratios.ndim)
        part = second * others + offset
        part = jnp.where(second < 0, jnp.minimum(part, 0), jnp.maximum(part, 0))
        return jnp.maximum(first * ratios + part, 0)
