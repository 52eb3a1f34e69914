"""Positions are revealed far apart from each other: an order for few evaluations (absorbing graph).

Positions that are drawn from one evaluation are drawn as if they were independent given the
revealed tokens. Neighbours are not; positions far apart, or with revealed tokens between them,
nearly are. So free positions are revealed in the van der Corput order: the first, the middle, the
middles of both halves, and so on. In a Markov chain each of these generations, up to half of the
row, is independent given those before it: about log2 L evaluations could be exact.

The order does not depend on tokens. With true scores and one position per evaluation samples have
the distribution of the data, given held tokens too. With fewer evaluations the error is the mutual
information of the positions of an evaluation given the revealed ones.

References:
  Besnier et al., Halton Scheduler for Masked Generative Image Transformer, 2025 (arXiv 2503.17076):
    a low-discrepancy order, for images.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion.sampler import Move, Process
from sedd_jax.diffusion.score import Score
from sedd_jax.diffusion.unmasking import Ordered, smallest


@dataclasses.dataclass(frozen=True)
class Spaced(Ordered):
    """Positions far apart from each other, few at first."""

    growth: float = 2.0

    def reveal(
        self,
        keys: Key[Array, "B"],
        process: Process,
        move: Move,
        score: Score,
        least: Int[Array, "B"],
    ) -> tuple[Int[Array, "B L"], Float[Array, "B L"]]:
        chosen = smallest(turns(~process.clamp.held), move.active, least)
        drawn = score.draw(keys, move.weights, chosen, process.token_filter)
        return drawn.xt, drawn.total


def turns(free: Bool[Array, "B L"]) -> Float[Array, "B L"]:
    """Returns numbers in the order of which the free positions of a row are revealed.

    The number of the i-th free position has the bits of i in reverse (van der Corput).

    Args:
      free: positions to reveal.
    """
    index, bits = jnp.cumsum(free, axis=-1) - 1, max(free.shape[1] - 1, 1).bit_length()
    reverse = sum(((index >> bit) & 1) << (bits - 1 - bit) for bit in range(bits))
    return reverse.astype(jnp.float32)
