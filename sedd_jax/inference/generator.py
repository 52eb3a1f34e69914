"""Samplers as functions of weights, keys and prompt: each one program when jitted."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from sedd_jax.diffusion.reverse import SamplerInfo, SamplerState, build_kernels
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import PRECISIONS, Sampling
from sedd_jax.model.score_model import Params
from sedd_jax.runtime.components import Components


class Diagnostics(NamedTuple):
    """What happened while sampling.

    Attributes:
      evaluations: network evaluations of every row, the final denoising step included, [B].
      changed: positions changed at each of the steps + 1 calls, [steps + 1, B].
      finite: True for a row all of whose scores were finite, [B].
      trace: the tokens before the first and after every call, [steps + 2, B, L], if asked for.
    """

    evaluations: Int[Array, "B"]
    changed: Int[Array, "S B"]
    finite: Bool[Array, "B"]
    trace: Int[Array, "T B L"] | None


Generator = Callable[[Params, Key[Array, "B"], Prompt], tuple[Int[Array, "B L"], Diagnostics]]
Call = Callable[[SamplerState], tuple[SamplerState, SamplerInfo]]


class Chain(NamedTuple):
    """Rows on their way from noise to text, one call of the network after another.

    Attributes:
      start: the state before the first call.
      evaluations: calls that every row has use for, [B].
      call: makes any call but the last one.
      last: makes the last one.
    """

    start: SamplerState
    evaluations: Int[Array, "B"]
    call: Call
    last: Call


ChainOf = Callable[[Params, Key[Array, "B"], Prompt], Chain]


def build_chain(components: Components, sampling: Sampling, *, t_min: float) -> ChainOf:
    """Returns chain(params, keys, prompt), whose calls `build_generator` makes in one program.

    Times go evenly from 1 to t_min, the end of the range that was trained; the final denoising
    step removes the noise that is left.

    Args:
      components: graph, noise and network.
      sampling: how to draw.
      t_min: the smallest time of training.
    """
    graph, noise, model = components
    steps = sampling.steps
    times = jnp.linspace(1.0, t_min, steps + 1)
    answer = PRECISIONS[sampling.precision](model)

    def chain(params, keys, prompt):
        clamp = prompt.clamp
        padded = {} if prompt.lengths is None else {"lengths": prompt.lengths}
        score_fn = functools.partial(answer, params, **padded)

        def at_step(index):
            return jax.vmap(jax.random.fold_in, (0, None))(keys, index)

        def call(kernel):
            return lambda state: kernel(at_step(state.step), state)

        length = clamp.tokens.shape[1]
        limit = jax.vmap(lambda key: graph.sample_limit(key, (length,)))(at_step(steps + 1))
        reverse_step, denoise_step = build_kernels(
            graph, noise, score_fn, times, sampling.sampler, clamp
        )
        return Chain(
            start=SamplerState(clamp(limit), jnp.zeros((), jnp.int32)),
            evaluations=jnp.full(len(limit), steps + 1),
            call=call(reverse_step),
            last=call(denoise_step),
        )

    return chain


def build_generator(
    components: Components, sampling: Sampling, *, t_min: float, trace: bool = False
) -> Generator:
    """Returns generate(params, keys, prompt) -> (tokens, diagnostics), one program when jitted.

    Args:
      components: graph, noise and network.
      sampling: how to draw.
      t_min: the smallest time of training.
      trace: keep the tokens after every step.
    """
    begin = build_chain(components, sampling, t_min=t_min)

    def generator(params, keys, prompt):
        chain = begin(params, keys, prompt)

        def scanned(state, _):
            state, info = chain.call(state)
            return state, (info, state.xt if trace else None)

        state, (infos, path) = jax.lax.scan(scanned, chain.start, length=sampling.steps)
        state, last = chain.last(state)
        ends = chain.start.xt[None], state.xt[None]
        diagnostics = Diagnostics(
            evaluations=chain.evaluations,
            changed=jnp.concatenate([infos.changed, last.changed[None]]),
            finite=jnp.all(infos.finite, axis=0) & last.finite,
            trace=jnp.concatenate([ends[0], path, ends[1]]) if trace else None,
        )
        return state.xt, diagnostics

    return generator
