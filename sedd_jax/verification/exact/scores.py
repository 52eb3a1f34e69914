"""Score models whose answers are known: the exact ratios of an enumerated law, and tables."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sedd_jax.model.score_model import Params, ScoreModel, dense_model
from sedd_jax.verification.exact.space import Law, Space

# Log of the share of uniform data mixed into the law, so that a ratio to or from a sequence of
# probability 0 is defined: nearly 0, and among impossible sequences that of the uniform guess.
LOG_SMOOTHING = -69.0  # 1e-30


def exact_model(space: Space) -> ScoreModel:
    """Returns the score model that emits log p_t(y) / p_t(x_t), the exact answer (Section 3.1).

    Its parameters are the law of the data, {"data": [S]}, see `exact_params`; so whatever takes a
    network takes the truth as well. Every row costs S operations.
    """
    graph, length = space.graph, space.length

    def init(key):
        del key
        return exact_params(space.guess())

    def apply(
        params: Params,
        xt: Int[Array, "B L"],
        sigma: Float[Array, "B"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        del key
        data = params["data"].reshape((graph.num_states,) * length)
        return jax.vmap(functools.partial(_log_ratios, graph, data))(xt, sigma)

    return dense_model(init, apply)


def exact_params(data: Law) -> Params:
    """Returns the parameters of `exact_model` for a law of data, in JAX's present precision."""
    return {"data": jnp.asarray(data, float)}


def tabulated(model: ScoreModel, space: Space) -> ScoreModel:
    """Returns the same model, evaluated once for every sequence of the space instead of every row.

    Equal to the model where all rows have the same sigma, as they have while sampling; a batch of
    many more rows than sequences then costs next to nothing.
    """
    states = jnp.asarray(space.states)
    place_values = space.graph.num_states ** jnp.arange(space.length)[::-1]

    def apply(params, xt, sigma, key=None):
        table = model.apply(params, states, jnp.broadcast_to(sigma[0], len(states)), key=key)
        return table[xt @ place_values]

    return dense_model(model.init, apply)


def _log_ratios(graph, data, xt, sigma):
    """The log ratios [L, V] of one sequence."""
    log_marginal = _log_marginal(graph, data, sigma)
    rows = []
    for position in range(data.ndim):
        here = tuple(x if i != position else slice(None) for i, x in enumerate(xt))
        rows.append(log_marginal[here])
    return jnp.stack(rows) - log_marginal[tuple(xt)]


def _log_marginal(graph, data, sigma):
    """Log p_t of every sequence, [V, ..., V], of data mixed with a trace of the uniform guess."""
    kernel = graph.transition(jnp.arange(graph.num_states), sigma)  # [x_0, x_t]
    log_guess_token = jnp.log(kernel[: graph.num_tokens].mean(0))
    marginal, log_guess = data, jnp.zeros(())
    for _ in range(data.ndim):  # every turn noises the first axis and moves it to the end
        marginal = jnp.tensordot(marginal, kernel, axes=(0, 0), precision="highest")
        log_guess = log_guess[..., None] + log_guess_token.reshape((1,) * log_guess.ndim + (-1,))
    return jnp.logaddexp(jnp.log(marginal), LOG_SMOOTHING + log_guess)
