"""Tokens that are given and clean: the exact score of the rest, and its reverse process."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from sedd_jax.model.context import NOTHING, Context
from sedd_jax.model.score_model import Params, ScoreModel, dense_model
from sedd_jax.verification.exact.reverse_process import ReverseProcess
from sedd_jax.verification.exact.scores import exact_model
from sedd_jax.verification.exact.space import Space


@functools.lru_cache(maxsize=32)  # equal models share compiled programs
def exact_told_model(space: Space) -> ScoreModel:
    """Returns `exact_model` with given tokens: the ratios of p(noised rest, clean given tokens).

    At given positions its log-scores mean nothing. Its parameters are those of `exact_model`, here
    of full support.
    """
    graph, length = space.graph, space.length
    clean = jnp.asarray(space.states[space.clean])

    def apply(
        params: Params,
        xt: Int[Array, "B L"],
        sigma: Float[Array, "B"],
        key: Key[Array, ""] | None = None,
        context: Context = NOTHING,
    ) -> Float[Array, "B L V"]:
        del key
        given = jnp.zeros(xt.shape, bool) if context.given is None else context.given
        data = params["data"][space.clean]

        def log_ratios(row, sigma, given):
            probs = graph.transition(clean, sigma)  # p(y | x0) of every position, [C, L, V]
            here = jnp.where(given[None], clean == row[None], probs[:, jnp.arange(length), row])
            others = jnp.where(jnp.eye(length, dtype=bool)[None], 1, here[:, None]).prod(-1)
            joint = jnp.einsum("c,cl,clv->lv", data, others, probs, precision="highest")
            log_joint = jnp.log(joint)
            return log_joint - log_joint[jnp.arange(length), row][:, None]

        return jax.vmap(log_ratios)(xt, sigma, given)

    return dense_model(exact_model(space).init, apply, told_given=True)


def given_process(process: ReverseProcess, given: Mapping[int, int]) -> ReverseProcess:
    """Returns the process on the sequences of the positions that are not given.

    Its samples, likelihood and bound are those of a clamped sampler: of the rest, given the tokens.
    A network that is told which tokens are given is told here too.

    Args:
      process: of all positions.
      given: tokens by position, not all of them.
    """
    family, params, space = process
    places = tuple(sorted(given))
    tokens = jnp.array([given[place] for place in places])
    model = _of_the_rest(family.model, space.length, places)
    rest = Space(space.graph, space.length - len(places))
    return ReverseProcess(family._replace(model=model), {"network": params, "given": tokens}, rest)


@functools.lru_cache(maxsize=64)  # the tokens are parameters: one program for all of a pattern
def _of_the_rest(model: ScoreModel, length: int, places: tuple[int, ...]) -> ScoreModel:
    is_given = np.isin(np.arange(length), places)
    rest = np.flatnonzero(~is_given)

    def apply(params, xt, sigma, key=None):
        del key
        rows = jnp.zeros((len(xt), length), xt.dtype).at[:, rest].set(xt)
        rows = rows.at[:, np.array(places)].set(params["given"].astype(xt.dtype)[None])
        context = model.told(Context(jnp.broadcast_to(is_given[None], rows.shape)))
        known = {} if context.empty else {"context": context}
        return model.apply(params["network"], rows, sigma, **known)[:, rest]

    return dense_model(model.init, apply)
