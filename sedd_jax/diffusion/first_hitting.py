"""First hitting: draw when each position leaves the mask, then which token it becomes (absorbing).

Under the reverse process of the absorbing graph the times at which positions leave the mask do not
depend on the tokens. Given that a position is masked at t = 1, it still is at total noise sigma
with probability (1 - exp(-sigma)) / (1 - exp(-sigma(1))), independently of the others; so

    1 - exp(-sigma_i) = u_i (1 - exp(-sigma(1))),    u_i uniform on (0, 1),

and at sigma_i the token is y with probability score_y / sum of score, given the tokens
present then. The network is evaluated only when a position changes: at most once per position.
With exact scores the samples have the data distribution, and given held tokens the conditional one:
no time is discretised.

On a grid of T steps, positions whose times fall into the same interval are drawn together, by one
evaluation at its start; those whose times are below t_min come last. This is the distribution of
Tweedie with T steps, if the ratios of a position sum to 1 / (exp(sigma) - 1), as exact ones do,
without the evaluations in which nothing changes.

Only normalised ratios are used. A network whose totals are larger jumps earlier under Tweedie.

With `block`, the free positions of a row leave the mask in blocks from left to right: u_i lies in
the part of (0, 1) that belongs to the block of i, the highest for the first. With blocks of one
position tokens are drawn from left to right.

References:
  Zheng et al., Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit
  Inaccurate Categorical Sampling, 2024 (arXiv 2409.02908);
  the grid is ours.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.sampler import Process, SamplerInfo
from sedd_jax.diffusion.score import StepWeights
from sedd_jax.diffusion.unmasking import Unmasking, info_of
from sedd_jax.errors import check_positive


class Hits(NamedTuple):
    """When positions leave the mask.

    Attributes:
      evaluation: index, from 0, of the network evaluation that draws a position; -1 where held.
      sigma: total noise of that evaluation.
    """

    evaluation: Int[Array, "B L"]
    sigma: Float[Array, "B L"]

    @property
    def nfe(self) -> Int[Array, "B"]:
        """Network evaluations of every row."""
        return self.evaluation.max(-1) + 1


class HittingState(NamedTuple):
    """State of the sampler: the tokens, the number of steps done, and when positions change."""

    xt: Int[Array, "B L"]
    step: Int[Array, ""]
    hits: Hits


@dataclasses.dataclass(frozen=True)
class FirstHitting(Unmasking):
    """One evaluation per position at most; rows proceed at their own pace and their own noise.

    Attributes:
      block: free positions of a block, drawn before those on its right; None: all in one block.
    """

    block: int | None = None

    def __post_init__(self):
        if self.block is not None:
            check_positive(block=self.block)

    def init(self, keys: Key[Array, "B"], process: Process, xt: Int[Array, "B L"]) -> HittingState:
        clamp, steps = process.clamp, process.steps
        u = jax.vmap(lambda key: categorical.uniform_by_position(key, (xt.shape[1],)))(keys)
        if self.block is not None:
            u = within_blocks(u, ~clamp.held, self.block)
        hits = hits_from_uniforms(u, process.noise, ~clamp.held, process.t_min, steps)
        return HittingState(clamp(xt), jnp.zeros((), jnp.int32), hits)

    def step(
        self, keys: Key[Array, "B"], process: Process, state: HittingState
    ) -> tuple[HittingState, SamplerInfo]:
        hits = state.hits
        evaluated = state.step < hits.nfe
        at = hits.evaluation == jnp.minimum(state.step, hits.nfe - 1)[:, None]
        sigma = jnp.where(at, hits.sigma, 0).max(-1)  # a finished row stays at its last noise

        score = process.score_fn(state.xt, sigma)
        draw = score.draw(keys, only_which, at & evaluated[:, None], process.token_filter)
        xt = process.clamp(draw.xt)
        info = info_of(state.xt, xt, draw.total, sigma, evaluated)
        return HittingState(xt, state.step + 1, hits), info

    def nfe(self, process: Process, state: HittingState) -> Int[Array, "B"]:
        return state.hits.nfe

    def unfinished(self, process: Process, state: HittingState) -> Bool[Array, "B"]:
        del process
        return state.step < state.hits.nfe


def only_which(total: Float[Array, "B L"]) -> StepWeights:
    """Returns the weights of a position that changes for certain: only which token it becomes."""
    return StepWeights(scale=jnp.ones_like(total), cut=None, stay=jnp.zeros_like(total))


def blocks_of(free: Bool[Array, "B L"], block: int) -> Int[Array, "B L"]:
    """Returns the number, from 0, of the block of every free position; meaningless elsewhere.

    Args:
      free: positions to draw.
      block: free positions of a block; the last one of a row may have fewer.
    """
    return (jnp.cumsum(free, axis=-1) - 1) // block


def within_blocks(
    u: Float[Array, "B L"], free: Bool[Array, "B L"], block: int
) -> Float[Array, "B L"]:
    """Returns uniforms on the part of (0, 1) that belongs to the block of a position.

    Args:
      u: uniforms, one for each position.
      free: positions to draw.
      block: free positions of a block.
    """
    count = free.sum(-1, keepdims=True)
    start = blocks_of(free, block) * block
    end = jnp.minimum(start + block, count)
    return (count - end + u * (end - start)) / jnp.maximum(count, 1)


def hits_from_uniforms(
    u: Float[Array, "B L"], noise: Noise, free: Bool[Array, "B L"], t_min: float, steps: int | None
) -> Hits:
    """Returns when positions leave the mask.

    Args:
      u: uniforms, one for each position.
      noise: the schedule.
      free: positions to sample, those not held.
      t_min: the smallest time of training: no evaluation is made at less noise than there.
      steps: of the grid, evenly from 1 to t_min; None for one position per evaluation.
    """
    sigmas = noise.sigma(jnp.linspace(1.0, t_min, 2 if steps is None else steps + 1))
    masked = -jnp.expm1(-sigmas)  # probability of a mask at these times
    hit = u * masked[0]
    order = jnp.argsort(jnp.where(free, -hit, 1), axis=-1)  # the noisiest first, held ones last
    rank = jnp.argsort(order, axis=-1)
    if steps is None:
        return Hits(
            jnp.where(free, rank, -1).astype(jnp.int32),
            jnp.maximum(-jnp.log1p(-hit), sigmas[-1]),
        )
    interval = jnp.searchsorted(-masked[1:], -hit)  # how many later times of the grid are noisier
    in_order = jnp.take_along_axis(interval, order, -1)
    opens = jnp.pad(in_order[:, 1:] != in_order[:, :-1], ((0, 0), (1, 0)))
    evaluation = jnp.take_along_axis(jnp.cumsum(opens, axis=-1), rank, -1)
    return Hits(jnp.where(free, evaluation, -1).astype(jnp.int32), sigmas[interval])
