"""The exact score of an enumerated distribution, and the paper's objectives as exact expectations.

In the objectives `log_score` [S, L, V] holds the output of a model for every sequence:
log_score[s, i, y] is the log ratio of sequence s with token y at position i, to sequence s. Sums
run over the one-token changes that the graph allows, with the weights w_xy = Q[x, y] of the
diffusion. All are differentiable in log_score.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jaxtyping import Array, Float, Int, Key

from sedd_jax.diffusion.score_entropy import score_entropy
from sedd_jax.model.score_model import Params, ScoreModel, dense_model
from sedd_jax.verification.exact.space import Distribution, Space, product_distribution

Scores = Float[Array, "S L V"] | Float[np.ndarray, "S L V"]

# Log of the share of uniform data mixed into the data, so that a ratio to or from a sequence of
# probability 0 is defined: nearly 0, and among impossible sequences that of uniform data.
LOG_SMOOTHING = -69.0  # 1e-30


@functools.lru_cache(maxsize=32)  # equal models share compiled programs
def exact_model(space: Space) -> ScoreModel:
    """Returns the score model that emits log p_t(y) / p_t(x_t), the exact answer (Section 3.1).

    Its parameters are the data distribution, {"data": [S]}, see `exact_params`; so every function
    of a network also takes the true score. Every row costs S operations.
    """

    def init(key):
        del key
        return exact_params(space.uniform_data())

    def apply(
        params: Params,
        xt: Int[Array, "B L"],
        sigma: Float[Array, "B"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        del key

        def log_ratios(row, sigma):
            log_marginal = _log_marginal(space, params["data"], sigma)
            return log_marginal[jnp.asarray(space.neighbours)[row]] - log_marginal[row]

        return jax.vmap(log_ratios)(space.index(xt), sigma)

    return dense_model(init, apply)


def _log_marginal(space, data, sigma):
    """Log p_t of every sequence, [S], of data mixed with a trace of uniform data."""
    graph, shape = space.graph, (space.graph.num_states,) * space.length
    kernel = graph.transition(jnp.arange(graph.num_states), sigma)  # [x_0, x_t]
    marginal = data.reshape(shape)
    for _ in shape:  # each iteration noises the first axis and moves it to the end
        marginal = jnp.tensordot(marginal, kernel, axes=(0, 0), precision="highest")
    log_uniform_token = jnp.log(kernel[: graph.num_tokens].mean(0))
    log_uniform = log_uniform_token[space.states].sum(-1)
    return jnp.logaddexp(jnp.log(marginal).reshape(-1), LOG_SMOOTHING + log_uniform)


def exact_params(data: Distribution) -> Params:
    """Returns the parameters of `exact_model` for a data distribution, in JAX's default float."""
    return {"data": jnp.asarray(data, float)}


def tabulated(model: ScoreModel, space: Space) -> ScoreModel:
    """Returns the same model, evaluated once for every sequence of the space instead of every row.

    Equal to the model where all rows have the same sigma, as they have while sampling; a batch of
    many more rows than sequences then costs next to nothing.
    """
    states = jnp.asarray(space.states)

    def apply(params, xt, sigma, key=None):
        table = model.apply(params, states, jnp.broadcast_to(sigma[0], len(states)), key=key)
        return table[space.index(xt)]

    return dense_model(model.init, apply)


def exact_ratios(space: Space, marginal: Distribution) -> Float[np.ndarray, "S L V"]:
    """Returns p(y) / p(x) for every sequence x and one-token change y; 0 where p(x) = 0."""
    p_x = marginal[:, None, None]
    return np.where(p_x > 0, marginal[space.neighbours] / np.where(p_x > 0, p_x, 1), 0)


def explicit_score_entropy(
    space: Space, log_score: Scores, marginal: Distribution
) -> Float[Array, ""]:
    """Returns E_x sum_y w_xy (s_y - r_y log s_y + K(r_y)), r the true ratios (Eq. 5).

    Args:
      space: all sequences.
      log_score: of every sequence.
      marginal: p_t.
    """
    ratio = exact_ratios(space, marginal)
    entropy = jnp.exp(log_score) - ratio * log_score + xlogy(ratio, ratio) - ratio
    return jnp.sum(marginal[:, None, None] * _weights_in(space) * entropy)


def implicit_score_entropy(
    space: Space, log_score: Scores, marginal: Distribution
) -> Float[Array, ""]:
    """Returns E_x sum_y (w_xy s(x)_y - w_yx log s(y)_x), which needs no ratios (Eq. 6).

    Args:
      space: all sequences.
      log_score: of every sequence.
      marginal: p_t.
    """
    state, position, _ = np.indices(space.neighbours.shape)
    backward = log_score[space.neighbours, position, space.states[state, position]]
    terms = _weights_in(space) * jnp.exp(log_score) - _weights_out(space) * backward
    return jnp.sum(marginal[:, None, None] * terms)


def denoising_score_entropy(
    space: Space, log_score: Scores, data: Distribution, sigma: float
) -> Float[Array, ""]:
    """Returns the expectation over (x_0, x_t) of `score_entropy`, the training loss (Eqs. 7, 10).

    Its constant is that of the ratios given x_0, so it exceeds Eq. 5 by a constant.

    Args:
      space: all sequences.
      log_score: of every sequence.
      data: distribution of x_0.
      sigma: total noise.
    """
    rows = np.flatnonzero(data)
    return data[rows] @ denoising_losses(space, log_score, rows, sigma)


def denoising_losses(
    space: Space, log_score: Scores, rows: Int[np.ndarray, "N"], sigma: float | Float[Array, ""]
) -> Float[Array, "N"]:
    """Returns E over x_t of the summed `score_entropy` given x_0, for several x_0.

    Args:
      space: all sequences.
      log_score: of every sequence.
      rows: rows of `space.states` that hold the x_0.
      sigma: total noise.
    """
    graph, states = space.graph, jnp.asarray(space.states)
    sigmas = jnp.full(len(states), sigma)

    def entropy_given(x0):
        x0 = jnp.broadcast_to(x0, states.shape)
        return score_entropy(graph, jnp.asarray(log_score), sigmas, states, x0).sum(-1)

    starts = states[rows]
    kernel = product_distribution(graph.transition(starts, jnp.asarray(sigma)))
    return jnp.sum(kernel * jax.lax.map(entropy_given, starts), axis=-1)


def concrete_score_matching(
    space: Space, score: Scores, marginal: Distribution
) -> Float[Array, ""]:
    """Returns E_x sum_y w_xy (s_y - r_y)^2 / 2: squared error, the baseline (Eq. 4).

    Args:
      space: all sequences.
      score: the ratios of every sequence, any real numbers.
      marginal: p_t.
    """
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
