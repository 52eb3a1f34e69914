"""The score-entropy loss, which trains a network to estimate ratios of the data distribution.

The network emits log_score[y] = log s(x_t)_y, its estimate of log p_t(y) / p_t(x_t). The losses
compare it with the conditional ratio r_y = p(y | x0) / p(x_t | x0), which is known.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.graph import ByLimit, Graph, PerState, at_states, over_positions


class Target(NamedTuple):
    """The conditional ratios p(y | x0) / p(x_t | x0) at every position.

    They have one value at y = x0, and one at all other states under the uniform and the absorbing
    graph; under others it depends on the state, by pi.

    Attributes:
      xt: noised tokens.
      x0: clean tokens.
      weight: Q[x_t, y], the same for all y != x_t; 0 where the position has no loss.
      ratio: the conditional ratio at y = x0 and at any other state.
      constant: K(ratio) = ratio (log ratio - 1) for both; None for a ratio that depends on the
        state.
    """

    xt: Int[Array, "*s"]
    x0: Int[Array, "*s"]
    weight: Float[Array, "*s"]
    ratio: tuple[Float[Array, "*s"], PerState]
    constant: tuple[Float[Array, "*s"], Float[Array, "*s"] | None]

    def of_others(
        self, states: Int[Array, "C"], ndim: int
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Returns the ratio and the constant of states other than x0, see `at_states`."""
        ratio, constant = self.ratio[1], self.constant[1]
        values = at_states(ratio, states, ndim)
        if constant is not None:
            return values, at_states(constant, states, ndim)
        return values, values * (ratio.log_at(states, ndim) - 1)


def target(
    graph: Graph, sigma: Float[Array, "B *L"], xt: Int[Array, "B L"], x0: Int[Array, "B L"]
) -> Target:
    """Returns the ratios that `score_entropy` compares with, without an array over the vocabulary.

    Args:
      graph: the token graph.
      sigma: total noise of rows or of positions, positive.
      xt: noised tokens, reachable from x0.
      x0: clean tokens.
    """
    stayed, moved = over_positions(jnp.exp(-sigma)), -over_positions(jnp.expm1(-sigma))
    likelihood = jnp.where(xt == x0, stayed, 0) + moved * graph.limit[xt]
    if graph.equal_limit is None:
        at_x0 = (stayed + moved * graph.limit[x0]) / likelihood
        others = ByLimit(moved / likelihood, graph)
        constant = xlogy(at_x0, at_x0) - at_x0, None
        return Target(xt, x0, graph.limit[xt], (at_x0, others), constant)
    ratio = (
        (stayed + moved * graph.equal_limit) / likelihood,
        moved * graph.equal_limit / likelihood,
    )
    constant = tuple(xlogy(r, r) - r for r in ratio)
    return Target(xt, x0, graph.limit[xt], ratio, constant)


def entropy_terms(
    target: Target, states: Int[Array, "C"], log_score: Float[Array, "*s C"]
) -> Float[Array, "*s C"]:
    """Returns the terms of the score entropy at the given states y, without the weight Q[x_t, y].

    Their sum over all states, in chunks of any kind, times `target.weight`, is `score_entropy`.

    Args:
      target: the conditional ratios.
      states: states y that the last axis of log_score is over.
      log_score: log of the ratio estimates; ignored at x_t and where the weight is 0.
    """
    counts, ratio, constant = _at_states(target, states)
    log_score = jnp.where(counts, log_score, 0)  # so that no overflow meets a weight of 0
    return jnp.where(counts, jnp.exp(log_score) - ratio * log_score + constant, 0)


def squared_terms(
    target: Target, states: Int[Array, "C"], log_score: Float[Array, "*s C"]
) -> Float[Array, "*s C"]:
    """Returns half the squared error of the ratios at the given states y, 0 at x_t (Eq. 4).

    Args:
      target: the conditional ratios.
      states: states y that the last axis of log_score is over.
      log_score: log of the ratio estimates; ignored at x_t and where the weight is 0.
    """
    counts, ratio, _ = _at_states(target, states)
    score = jnp.exp(jnp.where(counts, log_score, 0))
    return jnp.where(counts, (score - ratio) ** 2 / 2, 0)


def _at_states(target, states):
    """Whether a state counts, its ratio and its constant, [*s, C]."""
    others = target.of_others(states, target.xt.ndim + 1)
    states = states.reshape((1,) * target.xt.ndim + (-1,))
    counts = (states != target.xt[..., None]) & (target.weight[..., None] > 0)
    at_x0 = states == target.x0[..., None]
    return counts, *(
        jnp.where(at_x0, at[..., None], other)
        for (at, _), other in zip((target.ratio, target.constant), others, strict=True)
    )


def score_entropy(
    graph: Graph,
    log_score: Float[Array, "B L V"],
    sigma: Float[Array, "B"],
    xt: Int[Array, "B L"],
    x0: Int[Array, "B L"],
) -> Float[Array, "B L"]:
    """Returns the denoising score entropy of every position, in nats (Eqs. 5 and 10).

        sum over y != x_t of  Q[x_t, y] (s_y - r_y log s_y + K(r_y)),   K(r) = r (log r - 1)

    The weights Q[x_t, y] are those of the diffusion (Eq. 10). Each term is >= 0 and 0 exactly at
    s = r. Dense: builds a few [B, L, V] arrays.

    Args:
      graph: the token graph.
      log_score: log of the ratio estimates, float32; the entry at x_t is ignored.
      sigma: total noise, positive.
      xt: noised tokens, reachable from x0.
      x0: clean tokens.
    """
    likelihood = graph.transition(x0, sigma)
    at_xt = jax.nn.one_hot(xt, graph.num_states, dtype=bool)
    ratio = likelihood / jnp.where(at_xt, likelihood, 0).sum(-1, keepdims=True)
    weight = graph.transposed_rate(xt)
    counts = weight > 0  # not at x_t, where Q is negative or zero
    log_score = jnp.where(counts, log_score, 0)  # so that no overflow meets a weight of 0
    entropy = jnp.exp(log_score) - ratio * log_score + xlogy(ratio, ratio) - ratio
    return jnp.where(counts, weight * entropy, 0).sum(-1)


def prior_kl(graph: Graph, sigma: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the prior term of the bound per token, KL(p(x_1 | x_0) | p_base), in nats (Eq. 9).

    p_base is a uniformly drawn token noised to sigma = sigma(1): the limit itself under the uniform
    graph; under the absorbing graph the limit would make the term infinite, since a share
    exp(-sigma) of the tokens is not masked. The largest over all x_0; the same for all where pi
    has the same value at all tokens.

    Args:
      graph: the token graph.
      sigma: total noise at t = 1.
    """
    guess, moved = graph.noised_guess(sigma), -jnp.expm1(-sigma) * graph.limit
    stayed = moved + jnp.exp(-sigma)  # the probability of y if y = x_0; of others it is `moved`
    of_others, at_x0 = (xlogy(p, p) - xlogy(p, guess) for p in (moved, stayed))
    return jnp.max((of_others.sum() - of_others + at_x0)[: graph.num_tokens])
