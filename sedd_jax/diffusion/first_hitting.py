"""First hitting: when every position leaves the mask is drawn first, then which token (absorbing).

Under the reverse process of the absorbing graph the times at which positions leave the mask know
nothing of the tokens. Given that a position is masked at t = 1, it still is at total noise sigma
with probability (1 - exp(-sigma)) / (1 - exp(-sigma(1))), independently of the others; so

    1 - exp(-sigma_i) = u_i (1 - exp(-sigma(1))),    u_i uniform on (0, 1),

and at sigma_i the token is y with probability score_y / sum of score, given what is there by then.
The network is called only where something happens: once for a position at most. With true scores
the samples have the law of the data, and given held tokens that of Bayes: no time is discretised.

On a grid of T steps, positions whose times fall into the same interval are drawn together, by one
call at its start; what is left below t_min comes last. This is the law of Tweedie with T steps and
totals of the ratios of 1 / (exp(sigma) - 1), as the true ones are, without the calls in which
nothing happens. A call is saved, and its tokens lag behind, by no more than the grid is wide.

Only normalised ratios are used. A network whose totals are larger jumps earlier under Tweedie.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sedd_jax.diffusion import categorical
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.reverse import Clamp, Kernel, SamplerInfo, SamplerState
from sedd_jax.diffusion.score import ScoreFn, StepWeights
from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter


class Hits(NamedTuple):
    """When positions leave the mask.

    Attributes:
      call: number of the call of its row that draws a position, from 0 on; -1 where held.
      sigma: total noise at which that call is made.
    """

    call: Int[Array, "B L"]
    sigma: Float[Array, "B L"]

    @property
    def calls(self) -> Int[Array, "B"]:
        """Calls of every row."""
        return self.call.max(-1) + 1


def draw_hits(
    keys: Key[Array, "B"],
    noise: Noise,
    free: Bool[Array, "B L"],
    t_min: float,
    steps: int | None,
) -> Hits:
    """Draws when positions leave the mask.

    Args:
      keys: one for each row, used once.
      noise: the schedule.
      free: positions that are sampled.
      t_min: the smallest time of training: no call is made at less noise than there.
      steps: of the grid, evenly from 1 to t_min; None for one position a call.
    """
    length = free.shape[1]
    u = jax.vmap(lambda key: categorical.uniform_by_position(key, (length,)))(keys)
    return hits_from_uniforms(u, noise, free, t_min, steps)


def hits_from_uniforms(
    u: Float[Array, "B L"], noise: Noise, free: Bool[Array, "B L"], t_min: float, steps: int | None
) -> Hits:
    """Returns what `draw_hits` draws where `uniform` gives u."""
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
    call = jnp.take_along_axis(jnp.cumsum(opens, axis=-1), rank, -1)
    return Hits(jnp.where(free, call, -1).astype(jnp.int32), sigmas[interval])


def build_kernel(
    score_fn: ScoreFn, hits: Hits, clamp: Clamp, token_filter: TokenFilter = NO_FILTER
) -> Kernel:
    """Returns the kernel of one call, which draws the positions of that number of every row.

    A kernel maps (keys, state) to (state, info), as in `reverse.build_kernels`. Rows go at their
    own pace, each at its own noise; a row that is done has no use for the call.

    Args:
      score_fn: maps (x_t, sigma) to a `Score`.
      hits: when positions leave the mask, drawn before.
      clamp: the positions to hold, those of which `hits.call` is -1.
      token_filter: how the token is drawn.
    """

    def law(total):
        return StepWeights(scale=jnp.ones_like(total), cut=None, stay=jnp.zeros_like(total))

    def reveal(keys, state):
        called = state.step < hits.calls
        at = hits.call == jnp.minimum(state.step, hits.calls - 1)[:, None]
        sigma = jnp.where(at, hits.sigma, 0).max(-1)  # one that is done stays at its last
        draw = score_fn(state.xt, sigma).draw(keys, law, at & called[:, None], token_filter)
        xt = clamp(draw.xt)
        info = SamplerInfo(
            changed=jnp.sum(xt != state.xt, axis=-1),
            finite=jnp.all(jnp.isfinite(draw.total), axis=-1),
            sigma=sigma,
            called=called,
        )
        return SamplerState(xt, state.step + 1), info

    return reveal
