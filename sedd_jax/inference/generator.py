"""Sampling as pure functions of (params, keys, prompt): all steps in one, or one at a time."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from sedd_jax.diffusion.graph import Graph
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.sampler import Process, Sampler, SamplerInfo
from sedd_jax.diffusion.score import tempered_score_fn
from sedd_jax.diffusion.temperature import NO_FILTER
from sedd_jax.inference.batches import RowKeys
from sedd_jax.inference.conditioning import Resampled
from sedd_jax.inference.guidance import build_guided
from sedd_jax.inference.prompt import Prompt
from sedd_jax.inference.sampling import Sampling
from sedd_jax.model.context import Context
from sedd_jax.model.score_model import Params, ScoreModel


class Diagnostics(NamedTuple):
    """What happened while sampling.

    Attributes:
      evaluations: network evaluations (NFE) of every row, the final denoising step included, [B].
      changed: number of positions that each step changed, the final one included, [S, B].
      finite: whether all scores of a row were finite, [B].
      trace: the tokens before the first and after every step, [S + 1, B, L], if asked for.
    """

    evaluations: Int[Array, "B"]
    changed: Int[Array, "S B"]
    finite: Bool[Array, "B"]
    trace: Int[Array, "T B L"] | None


Generator = Callable[[Params, Key[Array, "B"], Prompt], tuple[Int[Array, "B L"], Diagnostics]]


class Chain(NamedTuple):
    """The steps of a sampler on the rows of a prompt.

    Attributes:
      sampler: the sampler, with its copies of rows.
      init: init(params, keys, prompt) -> (state, nfe), the most network evaluations [B] that each
        row needs; of one copy of it.
      step: step(params, keys, prompt, state) -> (state, info).
      final: the last step, with the same arguments.
      unfinished: unfinished(params, prompt, state) -> the rows [B] that need a further step, where
        `Sampler.rows_differ`.
    """

    sampler: Sampler
    init: Callable[[Params, Key[Array, "B"], Prompt], tuple[Any, Int[Array, "B"]]]
    step: Callable[..., tuple[Any, SamplerInfo]]
    final: Callable[..., tuple[Any, SamplerInfo]]
    unfinished: Callable[[Params, Prompt, Any], Bool[Array, "B"]]


def build_chain(
    graph: Graph, noise: Noise, model: ScoreModel, sampling: Sampling, *, t_min: float
) -> Chain:
    """Returns the steps that `build_generator` runs in one program.

    Args:
      graph: the token graph.
      noise: the schedule.
      model: the network.
      sampling: how to draw.
      t_min: the smallest time of training.
    """
    sampler, particles = sampling.method, sampling.particles
    resamples = sampling.conditioning == "resample"
    if resamples:
        sampler = Resampled(sampler, particles)
    guided = build_guided(graph, model, sampling)

    def process(params, prompt):
        score_fn = guided(params, known_rows(model, prompt, particles))
        token_filter = NO_FILTER
        if sampling.tempering == "conditional":
            score_fn = tempered_score_fn(score_fn, sampling.token_filter)
        else:
            token_filter = sampling.token_filter
        return Process(
            graph,
            noise,
            score_fn,
            prompt.clamp,
            t_min,
            sampling.steps,
            token_filter,
            prompt.given if resamples else None,
            prompt.lengths,
        )

    def init(params, keys, prompt):
        row_keys = RowKeys.split(keys)
        length = prompt.tokens.shape[1]
        limit = jax.vmap(lambda key: graph.sample_limit(key, (length,)))(row_keys.limit)
        of_rows = process(params, prompt)
        state = sampler.init(row_keys.times, of_rows, limit)
        return state, sampler.nfe(of_rows, state)

    def advance(kernel, params, keys, prompt, state):
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(RowKeys.split(keys).steps, state.step)
        return kernel(step_keys, process(params, prompt), state)

    return Chain(
        sampler,
        init,
        functools.partial(advance, sampler.step),
        functools.partial(advance, sampler.final),
        lambda params, prompt, state: sampler.unfinished(process(params, prompt), state),
    )


def known_rows(model: ScoreModel, prompt: Prompt, copies: int = 1) -> dict[str, Any]:
    """Returns what a network is told of the rows of a prompt, arguments of `NetworkFn` by name.

    Args:
      model: the network.
      prompt: the rows.
      copies: of every row, one after another.
    """
    given = prompt.given if model.told_given else None
    known = {"lengths": prompt.lengths, "context": Context(given, prompt.condition)}
    known = {name: told for name, told in known.items() if jax.tree.leaves(told)}
    return jax.tree.map(lambda rows: jnp.repeat(rows, copies, axis=0), known)


def build_generator(
    graph: Graph,
    noise: Noise,
    model: ScoreModel,
    sampling: Sampling,
    *,
    t_min: float,
    trace: bool = False,
) -> Generator:
    """Returns generate(params, keys, prompt) -> (tokens, diagnostics), one program when jitted.

    Args:
      graph: the token graph.
      noise: the schedule.
      model: the network.
      sampling: how to draw.
      t_min: the smallest time of training.
      trace: keep the tokens after every step.
    """
    chain = build_chain(graph, noise, model, sampling, t_min=t_min)

    def generator(params, keys, prompt):
        run = _while_needed if chain.sampler.rows_differ else _scan_steps
        return run(chain, (params, keys, prompt), sampling, trace)

    return generator


def _scan_steps(chain, arguments, sampling, trace):
    """The samples where every row takes all steps and the final one."""

    def scanned(state, _):
        state, info = chain.step(*arguments, state)
        return state, (info, state.xt if trace else None)

    start, nfe = chain.init(*arguments)
    budget = chain.sampler.max_nfe(sampling.steps, start.xt.shape[1])
    steps = (budget - 1) // chain.sampler.evaluations_per_step
    state, (infos, path) = jax.lax.scan(scanned, start, length=steps)
    state, last = chain.final(*arguments, state)
    path = jnp.concatenate([start.xt[None], path, state.xt[None]]) if trace else None
    changed = jnp.concatenate([infos.changed, last.changed[None]])
    finite = jnp.all(infos.finite, axis=0) & last.finite
    return state.xt, Diagnostics(sampling.particles * nfe, changed, finite, path)


def _while_needed(chain, arguments, sampling, trace):
    """The samples after as many steps as the slowest row needs."""
    params, _, prompt = arguments
    start, _ = chain.init(*arguments)
    rows, length = start.xt.shape
    steps = sampling.max_nfe(length)

    def unfinished(carry):
        return (carry[0].step < steps) & chain.unfinished(params, prompt, carry[0]).any()

    def body(carry):
        before, done = carry
        state, info = chain.step(*arguments, before)
        return state, Diagnostics(
            done.evaluations + info.evaluations,
            done.changed.at[before.step].set(info.changed),
            done.finite & info.finite,
            done.trace.at[state.step].set(state.xt) if trace else None,
        )

    nothing = Diagnostics(
        jnp.zeros(rows, jnp.int32),
        jnp.zeros((steps, rows), jnp.int32),
        jnp.ones(rows, bool),
        jnp.broadcast_to(start.xt, (steps + 1, rows, length)) if trace else None,
    )
    state, done = jax.lax.while_loop(unfinished, body, (start, nothing))
    if trace:  # the rows stay as they are after the last step
        later = jnp.arange(steps + 1)[:, None, None] > state.step
        done = done._replace(trace=jnp.where(later, state.xt, done.trace))
    return state.xt, done
