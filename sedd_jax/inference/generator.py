"""Samplers as functions of weights, keys and prompt: each one program when jitted."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from sedd_jax.diffusion import first_hitting
from sedd_jax.diffusion.reverse import SamplerInfo, SamplerState, build_kernels
from sedd_jax.experiment.build import Components
from sedd_jax.inference.conditioning import HeldPath, condition
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import FIRST_HITTING, MOST_STEPS, PRECISIONS, Sampling
from sedd_jax.model.score_model import Params


class Diagnostics(NamedTuple):
    """What happened while sampling.

    Attributes:
      evaluations: network evaluations of every row, the final denoising step included, [B].
      changed: positions changed at each call, [S, B], S the most that a row can take.
      finite: True for a row all of whose scores were finite, [B].
      trace: the tokens before the first and after every call, [S + 1, B, L], if asked for.
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
      evaluations: calls that every copy of a row has use for, [B].
      call: makes any call but the last one.
      last: makes the last one.
      call_of: number of the call that changes a position, -1 for none, where it is known before.
    """

    start: SamplerState
    evaluations: Int[Array, "B"]
    call: Call
    last: Call
    call_of: Int[Array, "B L"] | None = None


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
    steps, particles = sampling.steps, sampling.particles
    answer = PRECISIONS[sampling.precision](model)

    def chain(params, keys, prompt):
        clamp = prompt.clamp
        padded = {}
        if prompt.lengths is not None:
            padded["lengths"] = jnp.repeat(prompt.lengths, particles)
        score_fn = functools.partial(answer, params, **padded)

        def at_step(index):
            return jax.vmap(jax.random.fold_in, (0, None))(keys, index)

        def call(kernel):
            return lambda state: kernel(at_step(state.step), state)

        length = clamp.tokens.shape[1]
        # beyond all steps, and the same for rows of any width
        first_key, second_key = (at_step(MOST_STEPS + i) for i in (1, 2))
        limit = jax.vmap(lambda key: graph.sample_limit(key, (length,)))(first_key)
        if sampling.sampler == FIRST_HITTING:  # the limit takes no key
            start = SamplerState(clamp(limit), jnp.zeros((), jnp.int32))
            hits = first_hitting.draw_hits(first_key, noise, ~clamp.held, t_min, steps)
            kernel = first_hitting.build_kernel(score_fn, hits, clamp, sampling.token_filter)
            return Chain(start, hits.calls, call(kernel), call(kernel), hits.call)
        times = jnp.linspace(1.0, t_min, steps + 1)
        start, reverse_step, denoise_step = condition(
            sampling.conditioning,
            functools.partial(
                build_kernels,
                graph,
                noise,
                score_fn,
                times,
                sampling.sampler,
                token_filter=sampling.token_filter,
            ),
            HeldPath(graph, noise, times, clamp, prompt.given),
            particles,
            second_key,
            limit,
        )
        calls = jnp.full(len(limit), steps + 1)
        return Chain(start, calls, call(reverse_step), call(denoise_step))

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
        if chain.call_of is None:
            return _made_in_turn(chain, sampling, trace)
        return _made_while_needed(chain, sampling.most_calls(chain.call_of.shape[1]), trace)

    return generator


def _made_in_turn(chain, sampling, trace):
    """The samples after as many calls as steps and the last one, which all rows have use for."""

    def scanned(state, _):
        state, info = chain.call(state)
        return state, (info, state.xt if trace else None)

    state, (infos, path) = jax.lax.scan(scanned, chain.start, length=sampling.steps)
    state, last = chain.last(state)
    path = jnp.concatenate([chain.start.xt[None], path, state.xt[None]]) if trace else None
    changed = jnp.concatenate([infos.changed, last.changed[None]])
    finite = jnp.all(infos.finite, axis=0) & last.finite
    evaluations = sampling.particles * chain.evaluations
    return state.xt, Diagnostics(evaluations, changed, finite, path)


def _made_while_needed(chain, most, trace):
    """The samples after as many calls as the slowest row has use for, `most` at most."""
    needed = chain.evaluations.max()

    def body(carry):
        state, finite = carry
        state, info = chain.call(state)
        return state, finite & info.finite

    start = chain.start, jnp.ones(chain.evaluations.shape, bool)
    state, finite = jax.lax.while_loop(lambda carry: carry[0].step < needed, body, start)
    call_of, calls = chain.call_of[None], jnp.arange(most + 1)[:, None, None]
    changed = jnp.sum(call_of == calls[:-1], axis=-1)
    path = jnp.where(call_of < calls, state.xt[None], chain.start.xt[None]) if trace else None
    return state.xt, Diagnostics(chain.evaluations, changed, finite, path)
