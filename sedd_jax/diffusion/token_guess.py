"""The loss of a guess that knows how often each token occurs, and its mean over x_t, known exactly.

The scores of the guess are those of independent tokens of distribution g: p(y) / p(x_t), where p is
g after total noise sigma. With q = p(. | x_0) and rho = q / p, its score entropy at a position is

    pi(x_t) / q(x_t) * (rho(x_t) - 1 - log rho(x_t) + KL(q || p)),

and its mean over x_t ~ q is

    sum over x of pi(x) (rho(x) - 1 - log rho(x)) + KL(q || p)  =  -d KL(q || p) / d sigma.

So no array over positions and states is needed, and the integral over t is a difference of KLs.
Under the absorbing graph the first is -log g(x_0) / expm1(sigma) at a mask, a cross-entropy.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.graph import Graph

LEAST = 0.05  # share of the uniform distribution in a guess: no token is impossible


class GuessEntropy(NamedTuple):
    """Score entropies of a guess, as `score_entropy` gives them for a network.

    Attributes:
      drawn: at x_t.
      mean: their mean over x_t given x_0.
    """

    drawn: Float[Array, "B L"]
    mean: Float[Array, "B L"]


def guess_entropy(
    graph: Graph,
    guess: Float[Array, "N"],
    sigma: Float[Array, "B"],
    xt: Int[Array, "B L"],
    x0: Int[Array, "B L"],
) -> GuessEntropy:
    """Returns the score entropy of a guess, and its mean.

    Args:
      graph: the token graph.
      guess: g, the probability of every token, positive.
      sigma: total noise, positive.
      xt: x0 noised to sigma.
      x0: clean tokens.
    """
    limit = graph.limit

    def of_row(sigma, xt, x0):
        at = _at(graph, guess, sigma, x0)
        rest = jnp.sum(limit * (jnp.expm1(-at.less) + at.less))
        less = at.less[x0]
        excess = jnp.expm1(at.log_rho) - at.log_rho - (jnp.expm1(-less) + less)
        mean = rest + limit[x0] * excess + at.kl
        same = xt == x0
        log_rho = jnp.where(same, at.log_rho, -at.less[xt])
        rate = jnp.where(same, limit[xt] / at.likelihood, -1 / jnp.expm1(-sigma))
        drawn = rate * (jnp.expm1(log_rho) - log_rho + at.kl)
        return GuessEntropy(jnp.where(limit[xt] > 0, drawn, 0), mean)

    return jax.vmap(of_row)(sigma, xt, x0)


def guess_kl(
    graph: Graph, guess: Float[Array, "N"], sigma: Float[Array, "B"], x0: Int[Array, "B L"]
) -> Float[Array, "B L"]:
    """Returns KL(q || p), which falls by the mean entropy integrated over sigma.

    Args:
      graph: the token graph.
      guess: g, the probability of every token, positive.
      sigma: total noise, positive.
      x0: clean tokens.
    """
    return jax.vmap(lambda sigma, x0: _at(graph, guess, sigma, x0).kl)(sigma, x0)


class _Row(NamedTuple):
    """Of all states, -log rho as it is where y is not x_0; at x_0 its q and log rho, and the KL."""

    less: Float[Array, "V"]
    likelihood: Float[Array, "L"]
    log_rho: Float[Array, "L"]
    kl: Float[Array, "L"]


def _at(graph, guess, sigma, x0):
    """What depends on the noise of a row, and on its tokens."""
    limit, guess = graph.limit, jnp.pad(guess, (0, graph.num_states - len(guess)))
    stayed, moved = jnp.exp(-sigma), -jnp.expm1(-sigma)
    reached = limit > 0
    share = stayed * guess / jnp.where(reached, moved * limit, 1)
    less = jnp.where(reached, jnp.log1p(share), 0)
    likelihood = stayed + moved * limit[x0]
    log_rho = jnp.log(likelihood / (stayed * guess[x0] + moved * limit[x0]))
    kl = likelihood * log_rho + moved * (limit[x0] * less[x0] - jnp.sum(limit * less))
    return _Row(less, likelihood, log_rho, kl)


def guess_of(
    graph: Graph,
    sigma: Float[Array, "B"],
    log_score: Float[Array, "B L V"],
    weight: Float[Array, "B L"],
) -> Float[Array, "N"]:
    """Returns the distribution of a token according to a network that sees noise alone.

    A row of scores, with 1 at x_t, is the distribution of the noised token given the others. Its
    mean over positions, without the tokens that moved, is that of the clean token.

    Args:
      graph: the token graph.
      sigma: total noise that the network was told.
      log_score: what it gave for draws from the limiting distribution.
      weight: of the positions, not negative and not all 0.
    """
    stayed, moved = jnp.exp(-sigma)[:, None, None], -jnp.expm1(-sigma)[:, None, None]
    clean = (jax.nn.softmax(log_score, axis=-1) - moved * graph.limit[None, None]) / stayed
    found = jnp.einsum("bl,blv->v", weight, clean)[: graph.num_tokens]
    found = jnp.maximum(found, 0)
    found = found / jnp.maximum(found.sum(), jnp.finfo(jnp.float32).tiny)
    return (1 - LEAST) * found + LEAST / graph.num_tokens
