"""How tokens are drawn: first whether to jump, then where to, from uniforms with a fine grid.

Float32 noise on the usual 2^-23 grid never produces events rarer than about 1e-7. Drawing
{stay, V tokens} jointly makes the probability of each token p/T at T steps, so rare tokens vanish
as T grows: more steps look colder, and generative perplexity too good (Zheng et al. 2024). Two
remedies, both used here: the decision to jump is drawn separately from the target, which removes
the 1/T, and uniforms are made from 64 random bits with their finest grid near 0, so that
probabilities down to 2^-64 (5e-20) occur.

References:
  Zheng et al., Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit
  Inaccurate Categorical Sampling, 2024 (arXiv 2409.02908).
  Vose, A Linear Algorithm for Generating Random Numbers with a Given Distribution, 1991: the table
  of aliases (Walker 1974).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from sedd_jax.diffusion.temperature import NO_FILTER, TokenFilter

BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1


def uniform_from_bits(high: UInt32[Array, "*s"], low: UInt32[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns (high + (low + 1/2) / 2^32) / 2^32 in float32, strictly inside (0, 1).

    Relative precision is 2^-24 everywhere: near 0 the grid is as fine as 2^-65.
    """
    fraction = (low.astype(jnp.float32) + 0.5) * 2.0**-32
    return jnp.minimum((high.astype(jnp.float32) + fraction) * 2.0**-32, BELOW_ONE)


def uniform(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Draws uniforms on (0, 1) whose probability of falling below p is p even for p = 1e-18."""
    high, low = jax.random.bits(key, (2, *shape), jnp.uint32)
    return uniform_from_bits(high, low)


def uniform_by_position(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Draws as `uniform` does; leading entries do not depend on the size of the first axis.

    So a row of any width draws the same leading uniforms.
    """
    bits = jax.random.bits(key, (*shape, 2), jnp.uint32)
    return uniform_from_bits(bits[..., 0], bits[..., 1])


def gumbel_from_uniform(u: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns -log(-log(1 - u)): u near 0, where its grid is finest, gives the upper tail."""
    return -jnp.log(-jnp.log1p(-u))


def bernoulli(key: Key[Array, ""], prob: Float[Array, "*s"]) -> Bool[Array, "*s"]:
    """Draws events of probability `prob`, exact down to 1e-18; 0 never happens, 1 always does."""
    return uniform(key, prob.shape) < prob


def categorical(key: Key[Array, ""], weights: Float[Array, "*s V"]) -> Int[Array, "*s"]:
    """Draws an index with probability weights / sum(weights), by the Gumbel-max rule.

    Args:
      key: random key, used once.
      weights: non-negative and not all zero along the last axis; need not be normalised.
    """
    return categorical_from_uniform(uniform(key, weights.shape), weights)


def categorical_from_uniform(
    u: Float[Array, "*s V"], weights: Float[Array, "*s V"]
) -> Int[Array, "*s"]:
    """Returns what `categorical` draws where `uniform` gives u."""
    noise = gumbel_from_uniform(u)
    return jnp.argmax(jnp.log(weights) + noise, axis=-1).astype(jnp.int32)


class AliasTable(NamedTuple):
    """A distribution over V states, of which a draw takes two numbers and no array of V.

    Attributes:
      keep: the probability that state i, drawn uniformly, is kept.
      alias: the state that is drawn otherwise.
    """

    keep: Float[np.ndarray, "V"]
    alias: Int[np.ndarray, "V"]

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Int[Array, "..."]:
        """Draws states."""
        state_key, keep_key = jax.random.split(key)
        state = jax.random.randint(state_key, shape, 0, len(self.keep))
        kept = bernoulli(keep_key, jnp.asarray(self.keep, jnp.float32)[state])
        return jnp.where(kept, state, jnp.asarray(self.alias, jnp.int32)[state])


def alias_table(probs: Float[np.ndarray, "V"]) -> AliasTable:
    """Returns the table of a distribution (Vose 1991).

    Args:
      probs: non-negative, not all zero; need not be normalised.
    """
    keep = probs * (len(probs) / probs.sum())
    alias = np.arange(len(probs))
    small, large = (np.flatnonzero(it).tolist() for it in (keep < 1, keep >= 1))
    while small and large:  # a state below the mean gets its rest from one above
        low, high = small.pop(), large[-1]
        alias[low] = high
        keep[high] -= 1 - keep[low]
        if keep[high] < 1:
            small.append(large.pop())
    keep[[*small, *large]] = 1  # up to rounding
    return AliasTable(keep, alias)


def jump_probs(probs: Float[Array, "*s V"]) -> Float[Array, "*s V"]:
    """Returns the probabilities of `jump`: negative weights count as zero, rows sum to 1.

    Args:
      probs: weights, at least one of each row positive.
    """
    weights = jnp.maximum(probs, 0)
    return weights / weights.sum(-1, keepdims=True)


def jump(
    key: Key[Array, ""],
    xt: Int[Array, "*s"],
    probs: Float[Array, "*s V"],
    token_filter: TokenFilter = NO_FILTER,
) -> Int[Array, "*s"]:
    """Draws the next state of every position: first whether it leaves xt, then where to.

    Negative weights, which approximate scores can give, count as zero. The probability of
    leaving is the clamped weight off xt over the whole clamped weight, and 1 without weight at xt.

    Args:
      key: random key, used once.
      xt: current states. A state outside [0, V) has no weight to stay, so it always leaves:
        this removes the mask in the final denoising step, whose V excludes it.
      probs: weights of the next state, need not be normalised.
      token_filter: temperature and top-p of the new state; it does not affect the jump probability.
    """
    jump_key, target_key = jax.random.split(key)
    return jump_from_uniforms(
        uniform_by_position(jump_key, xt.shape),
        uniform_by_position(target_key, probs.shape),
        xt,
        probs,
        token_filter,
    )


def jump_from_uniforms(
    u_jump: Float[Array, "*s"],
    u_target: Float[Array, "..."],
    xt: Int[Array, "*s"],
    probs: Float[Array, "*s V"],
    token_filter: TokenFilter = NO_FILTER,
    draw: Callable[..., Int[Array, "*s"]] = categorical_from_uniform,
) -> Int[Array, "*s"]:
    """Returns what `jump` draws where `uniform` gives u_jump and u_target.

    Args:
      u_jump: uniforms that decide whether a position leaves xt.
      u_target: uniforms that decide where to.
      xt: current states.
      probs: weights of the next state, need not be normalised.
      token_filter: temperature and top-p of the new state.
      draw: maps (u_target, weights) to an index; u_target is as it takes them.
    """
    weights = jnp.maximum(probs, 0)
    at_xt = jax.nn.one_hot(xt, probs.shape[-1], dtype=bool)
    away = jnp.where(at_xt, 0, weights)
    leave = away.sum(-1)
    stay = jnp.where(at_xt, weights, 0).sum(-1)
    if token_filter != NO_FILTER:
        away = token_filter(jnp.log(away))
    return jnp.where(leaves(u_jump, leave, stay), draw(u_target, away), xt)


def leaves(
    u: Float[Array, "*s"], leave: Float[Array, "*s"], stay: Float[Array, "*s"]
) -> Bool[Array, "*s"]:
    """Returns whether a state is left: surely if staying has no weight, never if leaving has none.

    Args:
      u: uniforms.
      leave: weight of leaving.
      stay: weight of staying, may be negative.
    """
    return u < jnp.where(stay > 0, leave / (leave + stay), leave > 0)
