"""The objectives of the paper as exact expectations over an enumerated law (Section 3).

`log_score` [S, L, V] holds a model's answer for every sequence: log_score[s, i, y] is its log ratio
of sequence s with token y at position i, to sequence s. Sums run over one-token changes that
the graph allows, with the weights w_xy = Q[x, y] of the diffusion. Differentiable in log_score.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.score_entropy import score_entropy
from sedd_jax.verification.exact.space import Law, Space, product_law

Scores = Float[Array, "S L V"] | Float[np.ndarray, "S L V"]


def exact_ratios(space: Space, marginal: Law) -> Float[np.ndarray, "S L V"]:
    """Returns p(y) / p(x) for every sequence x and every one-token change y; 0 where p(x) = 0."""
    held = marginal[:, None, None]
    return np.where(held > 0, marginal[space.neighbours] / np.where(held > 0, held, 1), 0)


def explicit_score_entropy(space: Space, log_score: Scores, marginal: Law) -> Float[Array, ""]:
    """Returns E_x sum_y w_xy (s_y - r_y log s_y + K(r_y)), r the true ratios (Eq. 5)."""
    ratio = exact_ratios(space, marginal)
    entropy = jnp.exp(log_score) - ratio * log_score + xlogy(ratio, ratio) - ratio
    return jnp.sum(marginal[:, None, None] * _weights_in(space) * entropy)


def implicit_score_entropy(space: Space, log_score: Scores, marginal: Law) -> Float[Array, ""]:
    """Returns E_x sum_y (w_xy s(x)_y - w_yx log s(y)_x), which needs no ratios (Eq. 6)."""
    state, position, _ = np.indices(space.neighbours.shape)
    backward = log_score[space.neighbours, position, space.states[state, position]]
    terms = _weights_in(space) * jnp.exp(log_score) - _weights_out(space) * backward
    return jnp.sum(marginal[:, None, None] * terms)


def denoising_score_entropy(
    space: Space, log_score: Scores, data: Law, sigma: float
) -> Float[Array, ""]:
    """Returns the expectation over (x_0, x_t) of `score_entropy`, the training loss (Eqs. 7, 10).

    Its constant is that of the ratios given x_0, so it exceeds Eq. 5 by a constant.
    """
    rows = np.flatnonzero(data)
    return data[rows] @ denoising_losses(space, log_score, rows, sigma)


def denoising_losses(
    space: Space, log_score: Scores, rows: Int[np.ndarray, "N"], sigma: float | Float[Array, ""]
) -> Float[Array, "N"]:
    """Returns E over x_t of the summed `score_entropy` given x_0, for the sequences x_0 in rows."""
    graph, states = space.graph, jnp.asarray(space.states)
    sigmas = jnp.full(len(states), sigma)

    def given(x0):
        x0 = jnp.broadcast_to(x0, states.shape)
        return score_entropy(graph, jnp.asarray(log_score), sigmas, states, x0).sum(-1)

    starts = states[rows]
    kernel = product_law(graph.transition(starts, jnp.asarray(sigma)))
    return jnp.sum(kernel * jax.lax.map(given, starts), axis=-1)


def concrete_score_matching(space: Space, score: Scores, marginal: Law) -> Float[Array, ""]:
    """Returns E_x sum_y w_xy (s_y - r_y)^2 / 2: squared error, the baseline (Eq. 4)."""
    error = (score - exact_ratios(space, marginal)) ** 2 / 2
    return jnp.sum(marginal[:, None, None] * _weights_in(space) * error)


def _weights_in(space):
    """w_xy = Q[x, y]: the rate of going from y to x, for y != x."""
    return _off_diagonal(space, space.graph.transposed_rate(jnp.asarray(space.states)))


def _weights_out(space):
    """w_yx = Q[y, x]: the rate of going from x to y, for y != x."""
    return _off_diagonal(space, space.graph.rate(jnp.asarray(space.states)))


def _off_diagonal(space, rates):
    own = space.states[..., None] == np.arange(space.graph.num_states)
    return jnp.where(own, 0.0, rates)
