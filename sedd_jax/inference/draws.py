"""Which noise a bound is estimated at: plans that spend one network evaluation per sequence.

A draw is a total noise, a number of positions that have moved, and a weight; weight times the score
entropy, with that many positions moved at random, estimates the mean of the DWDSE loss over t
uniform on [t_min, 1], without bias. The number of positions that move is Binomial(L, p) with
p = 1 - exp(-sigma), so drawing it first changes nothing, and choosing it well is where most of the
variance goes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.stats import binom

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.score_entropy import score_entropy

CELLS = 128  # of t, in each of which `importance` draws evenly
FLOOR = 0.05  # share of its times that are drawn evenly: none is left out
# steps of a Kronecker sequence in three dimensions: powers of the root of x^4 = x + 1, inverted
STEPS = 1.2207440846057596 ** -np.arange(1.0, 4.0)


class Draws(NamedTuple):
    """One draw per sequence.

    Attributes:
      sigma: total noise.
      moved: number of positions redrawn from the limit.
      weight: factor on the score entropy.
    """

    sigma: Float[Array | np.ndarray, "N"]
    moved: Int[Array | np.ndarray, "N"]
    weight: Float[Array | np.ndarray, "N"]


Plan = Callable[[np.random.Generator, Graph, Noise, int, int, float], Draws]


def independent(
    rng: np.random.Generator, graph: Graph, noise: Noise, count: int, length: int, t_min: float
) -> Draws:
    """Draws independent times: the plain Monte-Carlo estimate."""
    del graph
    return at_times(rng, noise, t_min + (1 - t_min) * rng.random(count), length)


def low_discrepancy(
    rng: np.random.Generator, graph: Graph, noise: Noise, count: int, length: int, t_min: float
) -> Draws:
    """Draws one time in each of `count` equal intervals, in random order, as in training."""
    del graph
    unit = rng.permutation((np.arange(count) + rng.random()) / count)
    return at_times(rng, noise, t_min + (1 - t_min) * unit, length)


def importance(
    rng: np.random.Generator, graph: Graph, noise: Noise, count: int, length: int, t_min: float
) -> Draws:
    """Draws times and numbers in proportion to the loss of a uniform guess, spread evenly.

    A guess that knows nothing of the text has a known loss: a(t) at a position that moved and b(t)
    at any other. Drawn in proportion to m a + (L - m) b, what is averaged is the ratio of the
    model's loss to the guess's, which varies little. Under the absorbing graph, where b = 0, that
    is the mean loss per mask: how many masks there are no longer matters.
    """
    edges = np.linspace(t_min, 1, CELLS + 1)
    sigma, p, dsigma = _schedule(noise, (edges[1:] + edges[:-1]) / 2)
    moved_loss, other_loss = dsigma * _guess_entropy(graph, sigma)
    density = p * moved_loss + (1 - p) * other_loss
    density = (1 - FLOOR) * density / density.mean() + FLOOR
    cumulative = np.concatenate([[0], np.cumsum(density / CELLS)])

    points = (rng.permutation(count)[:, None] * STEPS + rng.random(3)) % 1
    cell = np.minimum(np.searchsorted(cumulative, points[:, 0], side="right") - 1, CELLS - 1)
    sigma, p, dsigma = _schedule(noise, np.interp(points[:, 0], cumulative, edges))
    a, b = moved_loss[cell], other_loss[cell]
    mean = p * a + (1 - p) * b
    # m a Binomial(m; L, p) is L p a times the law of 1 + Binomial(L - 1, p), and so for b
    moved = binom.ppf(points[:, 1], length - 1, p) + (points[:, 2] * mean < p * a)
    tilt = (moved * a + (length - moved) * b) / (length * mean)
    return Draws(sigma, moved.astype(np.int32), dsigma / (density[cell] * tilt))


PLANS: dict[str, Plan] = {
    "independent": independent,
    "low_discrepancy": low_discrepancy,
    "importance": importance,
}


def at_times(
    rng: np.random.Generator, noise: Noise, t: Float[np.ndarray, "N"], length: int
) -> Draws:
    """Draws at given times: numbers from their own law, weights that of the loss at t."""
    sigma, p, dsigma = _schedule(noise, t)
    return Draws(sigma, rng.binomial(length, p).astype(np.int32), dsigma)


def _schedule(noise, t):
    """Sigma, the probability that a position has moved, and dsigma."""
    t = jnp.asarray(t)
    sigma = np.float64(noise.sigma(t))
    return sigma, -np.expm1(-sigma), np.float64(noise.dsigma(t))


def _guess_entropy(graph, sigma):
    """The score entropy of the uniform guess, [2, T]: mean at a moved position, and at any other.

    By symmetry token 0 stands for all, and the last state for all others, the mask included.
    """
    states = jnp.array([[0, graph.num_states - 1]])

    def at(sigma):
        log_law = jnp.log(graph.noised_guess(sigma))
        log_score = log_law - log_law[states][..., None]
        return score_entropy(graph, log_score, sigma[None], states, jnp.zeros_like(states))[0]

    same, other = np.maximum(jax.lax.map(at, jnp.asarray(sigma, jnp.float32)), 0).T
    stays = float(graph.limit[0])
    entropy = np.float64([stays * same + (1 - stays) * other, same])
    # where there is nothing but rounding left, draw numbers by their own law
    return np.where(entropy.sum(0) > 1e-6, entropy, 1e-6)
