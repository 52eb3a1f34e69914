"""Positions are revealed far apart from each other: an order for few evaluations (absorbing graph).

Positions that are drawn from one evaluation are drawn as if they were independent given the
revealed tokens. Neighbours are not, and positions far apart nearly are, in a Markov chain up to an
error that falls exponentially with their distance. So every evaluation draws masked positions at
equal distances: the k-th, the (k + d)-th and so on, for a random k. With T evaluations for a row
without given tokens they are about T positions apart.

The order does not depend on tokens. With true scores and one position per evaluation samples have
the distribution of the data, given held tokens too. With fewer evaluations the error is the mutual
information of the positions of an evaluation, which no draw that treats them apart can avoid.

References:
  Besnier et al., Halton Scheduler for Masked Generative Image Transformer, 2025 (arXiv 2503.17076):
    spread positions, for images, by a low-discrepancy sequence;
  equal distances along a row, by systematic sampling, are ours.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.sampler import Move, Process
from sedd_jax.diffusion.score import Score
from sedd_jax.diffusion.unmasking import Ordered


@dataclasses.dataclass(frozen=True)
class Spaced(Ordered):
    """Equally many positions at every evaluation, at equal distances."""

    def reveal(
        self,
        keys: Key[Array, "B"],
        process: Process,
        move: Move,
        score: Score,
        least: Int[Array, "B"],
    ) -> tuple[Int[Array, "B L"], Float[Array, "B L"]]:
        choice_keys, draw_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        chosen = spread(choice_keys, move.active, least)
        drawn = score.draw(draw_keys, move.weights, chosen, process.token_filter)
        return drawn.xt, drawn.total


def spread(
    keys: Key[Array, "B"], eligible: Bool[Array, "B L"], count: Int[Array, "B"]
) -> Bool[Array, "B L"]:
    """Draws some eligible positions of every row at equal distances, all with equal probability.

    Args:
      keys: one for each row, used once.
      eligible: positions to choose from.
      count: of positions, at most those that are eligible.
    """
    among = eligible.sum(-1)
    u = jax.vmap(lambda key: categorical.uniform(key, ()))(keys)
    offset = jnp.minimum((u * among).astype(jnp.int32), among - 1)
    return evenly(offset, eligible, count)


def evenly(
    offset: Int[Array, "B"], eligible: Bool[Array, "B L"], count: Int[Array, "B"]
) -> Bool[Array, "B L"]:
    """Returns eligible positions at equal distances among them (systematic sampling).

    Args:
      offset: chooses where they begin, from 0 to the number of eligible positions less 1.
      eligible: positions to choose from.
      count: of positions.
    """
    among = jnp.maximum(eligible.sum(-1, keepdims=True), 1)
    before = jnp.cumsum(eligible, axis=-1) - eligible
    marks = ((before + step) * count[:, None] + offset[:, None] for step in (0, 1))
    low, high = (mark // among for mark in marks)
    return eligible & (high > low)
