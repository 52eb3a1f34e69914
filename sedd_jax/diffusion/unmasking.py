"""Samplers of the absorbing graph that draw every masked position once, in some order."""

import abc
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


class Unmasking(Sampler):
    """Samplers whose rows proceed at their own pace, with at most one evaluation per position."""

    default_steps = None  # one position per evaluation
    rows_differ = True
    needs = "the absorbing graph, whose positions leave the mask once"

    def serves(self, graph: Graph) -> bool:
        return graph.mask_id is not None and not graph.limit_of_token

    def max_nfe(self, steps: int | None, length: int) -> int:
        return length if steps is None else min(steps + 1, length)

    def final(self, keys: Key[Array, "B"], process: Process, state: Any) -> tuple[Any, SamplerInfo]:
        return self.step(keys, process, state)


class Ordered(Unmasking):
    """Samplers that choose at every step which masked positions to draw.

    The network is given the noise at which the present share of a row is masked, between the noise
    at t_min and at 1. Normalised true ratios are the same at all noise.
    """

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
          least: positions that the budget requires: those that are masked, evenly over the
            evaluations that are left. The last evaluation draws the rest.
        """

    def init(self, keys: Key[Array, "B"], process: Process, xt: Int[Array, "B L"]) -> SamplerState:
        return SamplerState(process.clamp(xt), jnp.zeros((), jnp.int32))

    def step(
        self, keys: Key[Array, "B"], process: Process, state: SamplerState
    ) -> tuple[SamplerState, SamplerInfo]:
        sigma = noise_of_share(process, state.xt)
        move = denoising(process, state.xt, sigma)
        left = jnp.maximum(self.nfe(process, state) - state.step, 1)
        least = -(-move.active.sum(-1) // left)
        xt, sums = self.reveal(keys, process, move, process.score_fn(move.xt, sigma), least)
        xt = process.clamp(xt)
        info = info_of(state.xt, xt, sums, sigma, move.active.any(-1))
        return SamplerState(xt, state.step + 1), info

    def nfe(self, process: Process, state: SamplerState) -> Int[Array, "B"]:
        free = ~process.clamp.held
        return jnp.minimum(self.max_nfe(process.steps, free.shape[1]), free.sum(-1))

    def unfinished(self, process: Process, state: SamplerState) -> Bool[Array, "B"]:
        return process.changeable(state.xt).any(-1)


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
