"""Samplers that choose positions by what the network says of them (absorbing graph).

Under the absorbing graph the positions may be revealed in any order. If the order depends on
revealed tokens alone, and one position is drawn at a time, then samples with true scores have the
distribution of the data. Positions that are drawn together, from one evaluation, are drawn as if
they were independent given the revealed tokens. What that costs is the KL divergence

    sum over i of H(x_i | revealed) - H(all of them | revealed) <= sum of H(x_i) - largest H(x_i),

so positions that are nearly certain can be drawn together. `EntropyBounded` draws as many as keep
the right-hand side, which the network's answer gives, below a bound. `Confidence` draws all masked
positions and keeps the surest tokens. Its order depends on tokens that are thrown away, so tokens
that are kept are too likely: it departs from the model's distribution, with any scores.

References:
  Ben-Hamu et al., Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking,
    2025 (arXiv 2505.24857); how a budget of evaluations is kept is ours;
  Chang et al., MaskGIT: Masked Generative Image Transformer, 2022 (arXiv 2202.04200): confidence,
    there with noise and a cosine schedule;
  Nie et al., Large Language Diffusion Models, 2025 (arXiv 2502.09992): confidence, called
    low-confidence remasking.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion.sampler import Move, Process
from sedd_jax.diffusion.score import Score
from sedd_jax.diffusion.spaced import turns
from sedd_jax.diffusion.unmasking import Ordered, smallest
from sedd_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class EntropyBounded(Ordered):
    """The surest positions, as many as a bound on the error of drawing them together allows.

    With true scores and without `steps`, the KL divergence of the data from the samples is at most
    the bound times the evaluations that a row of the data needs, on average. With `steps`, an
    evaluation draws more where the budget requires it: then positions far apart, as
    `diffusion.spaced`, since the surest stand beside each other.

    Attributes:
      bound: of the error of an evaluation, in nats: the sum of the entropies of the positions that
        it draws, less the largest of them. Entropies are those of the model, before temperature
        and top-p.
    """

    bound: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.bound < float("inf"):
            raise BadInput(f"bound must be at least 0 and finite, in nats, got {self.bound}.")

    def reveal(
        self,
        keys: Key[Array, "B"],
        process: Process,
        move: Move,
        score: Score,
        least: Int[Array, "B"],
    ) -> tuple[Int[Array, "B L"], Float[Array, "B L"]]:
        entropy = score.shannon_entropy(move.active)
        count = within_bound(entropy, move.active, self.bound)
        chosen = jnp.where(
            (count < least)[:, None],
            smallest(turns(~process.clamp.held), move.active, least),
            smallest(entropy, move.active, count),
        )
        return score.draw(keys, move.weights, chosen, process.token_filter).xt, entropy


@dataclasses.dataclass(frozen=True)
class Confidence(Ordered):
    """As many positions at every evaluation, those whose drawn token is the likeliest.

    It departs from the model's distribution.
    """

    def reveal(
        self,
        keys: Key[Array, "B"],
        process: Process,
        move: Move,
        score: Score,
        least: Int[Array, "B"],
    ) -> tuple[Int[Array, "B L"], Float[Array, "B L"]]:
        drawn = score.draw(keys, move.weights, move.active, process.token_filter)
        log_prob = score.log_prob(move.weights, move.active, drawn.xt)
        chosen = smallest(-log_prob, move.active, least)
        return jnp.where(chosen, drawn.xt, move.xt), drawn.total


def within_bound(
    entropy: Float[Array, "B L"], masked: Bool[Array, "B L"], bound: float
) -> Int[Array, "B"]:
    """Returns the largest number of positions, the surest first, that the bound allows.

    Args:
      entropy: of every position, in nats.
      masked: positions to choose from.
      bound: of the sum of their entropies, less the largest of them.
    """
    ordered = jnp.sort(jnp.where(masked, entropy, jnp.inf), axis=-1)
    before = jnp.pad(jnp.cumsum(ordered, axis=-1)[:, :-1], ((0, 0), (1, 0)))
    return jnp.sum(before <= bound, axis=-1)
