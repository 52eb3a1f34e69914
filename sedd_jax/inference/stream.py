"""Sampling that can be watched: what `generate` draws, after every call of the network."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from sedd_jax.errors import BadInput
from sedd_jax.experiment.build import Components
from sedd_jax.experiment.mesh import program
from sedd_jax.inference.batches import (
    check_rows,
    not_finite,
    row_batches,
    row_keys,
    row_numbers,
)
from sedd_jax.inference.generator import build_chain
from sedd_jax.inference.load import TrainedModel
from sedd_jax.inference.prompt import Prompt, check_prompt
from sedd_jax.inference.sampling import FIRST_HITTING, Sampling
from sedd_jax.inference.sliding import overlap_of


class Moment(NamedTuple):
    """The rows after so many calls of the network.

    Attributes:
      tokens: of the rows, the mask included.
      calls: made until now; 0 before the first.
      most: calls that there will have been at the end.
      evaluations: calls that every row had use for.
      sigma: total noise at which the last call was made; that of t = 1 before the first.
    """

    tokens: Int[np.ndarray, "N L"]
    calls: int
    most: int
    evaluations: Int[np.ndarray, "N"]
    sigma: Float[np.ndarray, "N"]


def live(
    key: Key[Array, ""],
    checkpoint: TrainedModel,
    prompt: Prompt,
    *,
    rows: np.ndarray | None = None,
    **settings: Any,
) -> Iterator[Moment]:
    """Returns the moments of a drawing: the start, and what there is after every call.

    The tokens of the last moment are those that `generate` gives for the same key, rows, prompt and
    settings, if the N rows are one batch there. Every call is one program, kept for the next
    request of the same shape and settings. Nothing is computed for moments that are not asked for.

    Args:
      key: random key.
      checkpoint: the model.
      prompt: tokens to hold, [N, L]; the N rows are drawn at once.
      rows: numbers of the rows, below 2^32; 0 to N - 1 by default.
      **settings: how to draw, see `Sampling`.

    Raises:
      BadInput: as `generate`, before the first moment is asked for.
      FloatingPointError: while moments are: the network gave a score that is not finite.
    """
    components, config = checkpoint.diffusion, checkpoint.config
    sampling = Sampling(**settings)
    sampling.check(components.graph)
    count, length = prompt.tokens.shape
    check_rows(config, count, length, count)
    if length > config.model.length:
        raise BadInput(
            f"Rows that are watched have at most {config.model.length} tokens, the trained length, "
            f"got {length}; `generate` draws longer ones."
        )
    check_prompt(prompt, (count, length), components.num_tokens)
    if sampling.overlap is not None:
        overlap_of(sampling.overlap, config.model.length)
    numbers = row_numbers(rows, count)
    kind = dataclasses.replace(sampling, overlap=None)
    programs = _compiled(components, checkpoint.mesh, kind, config.train.t_min)
    return _moments(key, checkpoint, prompt, numbers, programs, sampling.particles)


def _moments(key, checkpoint, prompt, numbers, programs, particles):
    count = len(numbers)
    (batch,) = row_batches(count, count, checkpoint.parts)  # filled up to divide over the devices
    taken = np.minimum(batch, count - 1)
    spread = jax.tree.map(lambda x: checkpoint.spread(np.asarray(x)[taken]), prompt)
    given = checkpoint.params, row_keys(key, checkpoint.spread(numbers[taken])), spread
    start, call, last = programs
    state, most, sigma = start(*given)
    if checkpoint.mesh is None:  # as the calls return it: else the second is compiled anew
        state = jax.device_put(state, jax.tree.leaves(checkpoint.params)[0].sharding)
    most = int(most)
    evaluations = np.zeros(count, np.int32)
    yield Moment(_host(state.xt, count), 0, most, evaluations, _host(sigma, count))
    for done in range(1, most + 1):
        state, info = (call if done < most else last)(*given, state)
        found = jax.tree.map(lambda x: _host(x, count), info)
        if not found.finite.all():
            raise not_finite(numbers[~found.finite])
        evaluations = evaluations + particles * found.called
        yield Moment(_host(state.xt, count), done, most, evaluations, found.sigma)


def _host(rows, count):
    return np.asarray(rows)[:count]


@functools.lru_cache(maxsize=8)
def _compiled(components: Components, mesh: Mesh | None, sampling: Sampling, t_min: float):
    """The start, any call but the last, and the last one: each a program."""
    chain = build_chain(components, sampling, t_min=t_min)

    def start(*given):
        begun = chain(*given)
        sigma = components.noise.sigma(jnp.ones(len(begun.evaluations)))
        return begun.start, begun.evaluations.max(), sigma

    def call(params, keys, prompt, state):
        return chain(params, keys, prompt).call(state)

    def last(params, keys, prompt, state):
        return chain(params, keys, prompt).last(state)

    start, call, last = (program(function, mesh) for function in (start, call, last))
    return start, call, call if sampling.sampler == FIRST_HITTING else last  # it has but one
