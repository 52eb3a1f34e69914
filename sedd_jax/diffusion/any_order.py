"""Likelihood of the order in which first hitting draws a row, and bounds on either side of log p.

First hitting (`diffusion.first_hitting`) draws when each position leaves the mask, u, and then
token after token. With u known, the probability of a row is a product over its positions:

    w(u) = prod_i p(x_i | tokens that left the mask before, sigma_i),    p(x) = E_u w(u).

For K independent draws of u this gives both

    E log (w_1 + ... + w_K) / K  <=  log p(x)  <=  E [log psi + w / psi - 1]

for every psi > 0 that does not depend on w: a concave function lies below its tangents. Here psi is
the mean of the other draws, so the upper bound too becomes tight as K grows: both miss log p(x) by
about var(w / p) / 2K. A network whose conditionals agree with each other, as those of one
distribution do, has the same w in every order, and both are log p(x).

The log of w varies with the order by a number of nats that grows with the root of the tokens, and
var(w / p) exponentially. So rows may be drawn in blocks from left to right: first hitting inside of
a block, given all before it. This is another distribution of the same network, which
`first_hitting(block=...)` draws from; log p is then a sum over blocks, each bounded on its own.

References:
  Uria et al., A Deep and Tractable Density Estimator, 2014: the average over orders;
  Burda et al., Importance Weighted Autoencoders, 2016: the lower bound of K draws;
  Ivanov et al., TUBE: Tangent Upper Bound on Evidence for Discrete Diffusion Language Models, 2026
    (arXiv 2605.24292): the tangent, and blocks; psi from the other draws is ours.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sedd_jax.diffusion.first_hitting import (
    blocks_of,
    hits_from_uniforms,
    only_which,
    within_blocks,
)
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.score import ScoreFn


def order_log_prob(
    score_fn: ScoreFn,
    noise: Noise,
    mask_id: int,
    u: Float[Array, "B L"],
    x0: Int[Array, "B L"],
    free: Bool[Array, "B L"],
    number: Int[Array, "B"],
    *,
    block: int,
    t_min: float,
) -> Float[Array, "B"]:
    """Returns log w(u) of one block of every row, given all before it; 0 where there is none.

    It takes `block` network evaluations.

    Args:
      score_fn: the network, under the absorbing graph.
      noise: the schedule.
      mask_id: the mask.
      u: uniforms, one for each position, see `FirstHitting`.
      x0: clean tokens.
      free: positions to score; the others are known from the start.
      number: of the block, from 0.
      block: free positions of a block.
      t_min: the smallest time of training.
    """
    blocks = blocks_of(free, block)
    own, later = free & (blocks == number[:, None]), free & (blocks > number[:, None])
    hits = hits_from_uniforms(within_blocks(u, free, block), noise, own, t_min, None)
    lowest = noise.sigma(jnp.asarray(t_min))

    def leave(total, step):
        at = hits.evaluation == step
        sigma = jnp.maximum(jnp.where(at, hits.sigma, 0).max(-1), lowest)
        xt = jnp.where(later | (hits.evaluation >= step), mask_id, x0)
        states = jnp.where(at, x0, xt)  # a position that is not drawn stays
        return total + score_fn(xt, sigma).log_prob(only_which, at, states).sum(-1), None

    return jax.lax.scan(leave, jnp.zeros(len(x0)), jnp.arange(block))[0]


def lower_bound(log_weights: Float[np.ndarray, "K N"]) -> Float[np.ndarray, "N"]:
    """Returns the estimate of log E w whose mean is at most it: the log of the mean of K draws."""
    return np.logaddexp.reduce(log_weights, axis=0) - np.log(len(log_weights))


def upper_bound(log_weights: Float[np.ndarray, "K N"]) -> Float[np.ndarray, "N"]:
    """Returns the estimate of log E w whose mean is at least it: the tangent at the other draws.

    Args:
      log_weights: of K >= 2 independent draws; of some but not of all draws they may be -inf.
    """
    before = np.logaddexp.accumulate(log_weights, axis=0)
    after = np.logaddexp.accumulate(log_weights[::-1], axis=0)[::-1]
    nothing = np.full_like(log_weights[:1], -np.inf)
    before, after = np.concatenate([nothing, before[:-1]]), np.concatenate([after[1:], nothing])
    psi = np.logaddexp(before, after) - np.log(len(log_weights) - 1)
    with np.errstate(over="ignore", invalid="ignore"):
        tangent = psi + np.expm1(log_weights - psi)
    return np.mean(np.where(np.isneginf(psi), np.inf, tangent), axis=0)
