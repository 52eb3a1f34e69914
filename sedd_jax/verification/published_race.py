"""How published codes draw tokens, kept to show what it does; nothing else is drawn this way.

All outcomes of a step race at once, {stay, V tokens}, each with a float32 exponential made from a
uniform on a grid of 2^-24. No exponential is smaller than about that, so an outcome rarer than the
grid loses most of its chances: with T steps a token of probability p has p / T at each, and keeps
only the share a / (exp(a) - 1), a = 2^-24 T / p, of its probability. `diffusion.categorical` is
without this.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion.score import DenseScore, Drawn, StepWeightsFn
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter

GRID = 2.0**-24  # of torch.rand in float32
_TINY = 1e-10


def race(u: Float[Array, "*s V"], weights: Float[Array, "*s V"]) -> Int[Array, "*s"]:
    """Returns the index that wins: the largest weight / exponential, in float32.

    Args:
      u: uniforms on the grid, in [0, 1).
      weights: of the outcomes; those that are negative lose to any other.
    """
    exponential = _TINY - jnp.log(u + _TINY)
    return jnp.argmax(weights / exponential, axis=-1).astype(jnp.int32)


def grid_uniform(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Draws the uniforms 0, GRID, 2 GRID, ..., 1 - GRID."""
    return (jax.random.bits(key, shape, jnp.uint32) >> 8).astype(jnp.float32) * GRID


@dataclasses.dataclass(frozen=True)
class RacedScore(DenseScore):
    """All log-scores as one array, from which is drawn as published codes do.

    What `log_prob` returns is the law of the weights, which these draws miss where it is rare.
    """

    def draw(
        self,
        keys: Key[Array, "B"],
        law: StepWeightsFn,
        active: Bool[Array, "B L"],
        token_filter: TokenFilter = NO_FILTER,
    ) -> Drawn:
        if token_filter != NO_FILTER:
            raise ValueError("The published race draws by the model's law alone.")
        total, weights = self._weigh(law, active)
        u = jax.vmap(lambda key: grid_uniform(key, weights.shape[1:]))(keys)
        return Drawn(jnp.where(active, race(u, weights), self.xt), total)
