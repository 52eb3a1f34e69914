"""Samplers of the absorbing graph that draw every masked position once, in some order."""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.sampler import (
    Move,
    Process,
    Sampler,
    SamplerInfo,
    SamplerState,
    denoising,
)
from sedd_jax.diffusion.score import Score
from sedd_jax.errors import BadInput


class Unmasking(Sampler):
    """Samplers whose rows proceed at their own pace, with at most one evaluation per position."""

    default_steps = None  # one position per evaluation
    rows_differ = True
    needs = "the absorbing graph, whose positions leave the mask once"

    def serves(self, graph: Graph) -> bool:
        return graph.absorbs

    def max_nfe(self, steps: int | None, length: int) -> int:
        return length if steps is None else min(steps + 1, length)

    def final(self, keys: Key[Array, "B"], process: Process, state: Any) -> tuple[Any, SamplerInfo]:
        return self.step(keys, process, state)


@dataclasses.dataclass(frozen=True)
class Ordered(Unmasking):
    """Samplers that choose at every step which masked positions to draw.

    The network is given the noise at which the present share of a row is masked, between the noise
    at t_min and at 1. Normalised true ratios are the same at all noise.

    Attributes:
      growth: after a share u of the evaluations of a row, a share u^growth of its free positions is
        drawn at least; above 1 the first evaluations, which know least, draw few.
    """

    growth: float = 1.0

    def __post_init__(self):
        if not 0 < self.growth < float("inf"):
            raise BadInput(f"growth must be above 0 and finite, got {self.growth}.")

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
          least: positions that the budget requires; at the last evaluation all that are masked.
        """

    def init(self, keys: Key[Array, "B"], process: Process, xt: Int[Array, "B L"]) -> SamplerState:
        return SamplerState(process.clamp(xt), jnp.zeros((), jnp.int32))

    def step(
        self, keys: Key[Array, "B"], process: Process, state: SamplerState
    ) -> tuple[SamplerState, SamplerInfo]:
        sigma = noise_of_share(process, state.xt)
        move = denoising(process, state.xt, sigma)
        score = process.score_fn(move.xt, sigma)
        xt, sums = self.reveal(keys, process, move, score, self._least(process, state))
        xt = process.clamp(xt)
        info = info_of(state.xt, xt, sums, sigma, move.active.any(-1))
        return SamplerState(xt, state.step + 1), info

    def nfe(self, process: Process, state: SamplerState) -> Int[Array, "B"]:
        free = ~process.clamp.held
        return jnp.minimum(self.max_nfe(process.steps, free.shape[1]), free.sum(-1))

    def unfinished(self, process: Process, state: SamplerState) -> Bool[Array, "B"]:
        return process.changeable(state.xt).any(-1)

    def _least(self, process, state):
        free, masked = (~process.clamp.held).sum(-1), process.changeable(state.xt).sum(-1)
        done = jnp.minimum((state.step + 1) / jnp.maximum(self.nfe(process, state), 1), 1)
        drawn = jnp.ceil(free * done**self.growth - 1e-3).astype(jnp.int32)  # rounding aside
        return jnp.clip(drawn - (free - masked), 1, jnp.maximum(masked, 1))


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


def info_of(
    before: Int[Array, "B L"],
    after: Int[Array, "B L"],
    sums: Float[Array, "B L"],
    sigma: Float[Array, "B"],
    evaluated: Bool[Array, "B"],
) -> SamplerInfo:
    """Returns what a step did.

    Args:
      before: tokens before the step.
      after: tokens after it.
      sums: what must be finite.
      sigma: total noise that the network was given.
      evaluated: the rows that needed the evaluation.
    """
    return SamplerInfo(
        changed=jnp.sum(after != before, axis=-1),
        finite=jnp.all(jnp.isfinite(sums), axis=-1),
        sigma=sigma,
        evaluations=evaluated.astype(jnp.int32),
    )
