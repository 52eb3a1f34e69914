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

The network is given the noise at which the present share of the row is masked, between the noise
at t_min and at 1. Normalised true ratios are the same at all noise.

References:
  Ben-Hamu et al., Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking,
    2025 (arXiv 2505.24857); that a budget of evaluations is kept is ours;
  Chang et al., MaskGIT: Masked Generative Image Transformer, 2022 (arXiv 2202.04200): confidence,
    there with noise and a cosine schedule;
  Nie et al., Large Language Diffusion Models, 2025 (arXiv 2502.09992): confidence, called
    low-confidence remasking.
"""

import abc
import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion.sampler import Move, Process, SamplerInfo, SamplerState, denoising
from sedd_jax.diffusion.score import Score
from sedd_jax.diffusion.unmasking import Unmasking, info_of
from sedd_jax.errors import BadInput


class Adaptive(Unmasking):
    """Samplers that choose the positions of a step by the network's answer."""

    @abc.abstractmethod
    def reveal(
        self,
        keys: Key[Array, "B"],
        process: Process,
        move: Move,
        score: Score,
        least: Int[Array, "B"],
    ) -> tuple[Int[Array, "B L"], Float[Array, "B L"]]:
        """Returns the tokens after the step, and what must be finite.

        Args:
          keys: one for each row, used once.
          process: the reverse process.
          move: the step that draws all masked positions.
          score: the network's answer.
          least: positions that the budget requires.
        """

    def init(self, keys: Key[Array, "B"], process: Process, xt: Int[Array, "B L"]) -> SamplerState:
        return SamplerState(process.clamp(xt), jnp.zeros((), jnp.int32))

    def step(
        self, keys: Key[Array, "B"], process: Process, state: SamplerState
    ) -> tuple[SamplerState, SamplerInfo]:
        sigma = noise_of_share(process, state.xt)
        move = denoising(process, state.xt, sigma)
        score = process.score_fn(move.xt, sigma)
        left = jnp.maximum(self._budget(process) - state.step, 1)
        least = -(-move.active.sum(-1) // left)  # evenly over the evaluations that are left
        xt, sums = self.reveal(keys, process, move, score, least)
        xt = process.clamp(xt)
        info = info_of(state.xt, xt, sums, sigma, move.active.any(-1))
        return SamplerState(xt, state.step + 1), info

    def nfe(self, process: Process, state: SamplerState) -> Int[Array, "B"]:
        return self._budget(process)

    def unfinished(self, process: Process, state: SamplerState) -> Bool[Array, "B"]:
        return process.changeable(state.xt).any(-1)

    def _budget(self, process):
        free = ~process.clamp.held
        return jnp.minimum(self.max_nfe(process.steps, free.shape[1]), free.sum(-1))


@dataclasses.dataclass(frozen=True)
class EntropyBounded(Adaptive):
    """The surest positions, as many as a bound on the error of drawing them together allows.

    With `steps`, evaluations draw more than the bound allows where the budget requires it: at
    least the masked positions over the evaluations that are left, so the last one draws the rest.
    With true scores and without a budget, the KL divergence of the data from the samples is at
    most the bound times the mean evaluations; it tends to 0 with the bound.

    Attributes:
      bound: of the error of an evaluation, in nats: the sum of the entropies of the positions that
        it draws, less the largest of them. Entropies are those of the model, before temperature
        and top-p.
    """

    bound: float = 0.1

    def __post_init__(self):
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
        count = jnp.maximum(within_bound(entropy, move.active, self.bound), least)
        chosen = smallest(entropy, move.active, count)
        return score.draw(keys, move.weights, chosen, process.token_filter).xt, entropy


@dataclasses.dataclass(frozen=True)
class Confidence(Adaptive):
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


def noise_of_share(process: Process, xt: Int[Array, "B L"]) -> Float[Array, "B"]:
    """Returns the noise at which as many positions of a row are masked on average.

    Args:
      process: the reverse process; padding of its rows does not count.
      xt: noised tokens.
    """
    length = xt.shape[1] if process.lengths is None else process.lengths
    share = jnp.sum(xt == process.graph.mask_id, axis=-1) / length
    lowest, highest = process.noise.sigma(jnp.array([process.t_min, 1.0]))
    return jnp.clip(-jnp.log1p(-share), lowest, highest)


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


def smallest(
    values: Float[Array, "B L"], eligible: Bool[Array, "B L"], count: Int[Array, "B"]
) -> Bool[Array, "B L"]:
    """Returns the eligible positions of every row with the smallest values, the first of equals.

    Args:
      values: of every position.
      eligible: positions to choose from.
      count: of positions, all if fewer are eligible.
    """
    order = jnp.argsort(jnp.where(eligible, values, jnp.inf), axis=-1, stable=True)
    return eligible & (jnp.argsort(order, axis=-1) < count[:, None])
