"""The law of what a sampler draws, without drawing: whole laws pushed through its steps."""

import functools
import itertools
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sedd_jax.diffusion.categorical import jump_probs
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.reverse import SAMPLERS, StepRule, denoise_weights
from sedd_jax.diffusion.score import total_away
from sedd_jax.experiment.build import Components
from sedd_jax.model.score_model import Params
from sedd_jax.verification.exact.space import Law, Space, float64, product_law


def sampler_law(
    components: Components,
    params: Params,
    space: Space,
    *,
    steps: int,
    sampler: StepRule | str,
    t_min: float,
    denoise: bool = True,
    given: Mapping[int, int] = MappingProxyType({}),
    conditioning: str = "clamp",
) -> Law:
    """Returns the law of the sequences that `build_generator` with these settings draws.

    Exact: the law at t = 1 is pushed through every step as a matrix, with the weights that the
    sampler itself computes, in JAX's present precision.

    Args:
      components: graph, noise and score model.
      params: of the score model.
      space: all sequences.
      steps: reverse steps before the final one.
      sampler: a key of SAMPLERS, or another rule.
      t_min: the time at which the steps end.
      denoise: take the final denoising step.
      given: tokens that are held, by position.
      conditioning: what they are on the way, see `inference.conditioning`; "resample" is the law
        of infinitely many copies, which is to sequences that agree with `given` alone, each step
        weighed by its probability of keeping them.
    """
    graph, noise, _ = components
    if conditioning != "clamp" and graph.mask_id is not None:
        raise ValueError(f"{conditioning!r} is for the uniform graph.")
    step_law, final_law = _compiled(components, space)
    times = jnp.linspace(1.0, t_min, steps + 1)
    rule = SAMPLERS[sampler] if isinstance(sampler, str) else sampler
    held = {"clamp": _clean, "renoise": _noised, "resample": _agreeing}[conditioning]
    start = np.tile(np.float64(graph.limit), (1, space.length, 1))
    law = product_law(held(start, given, graph, space, noise.sigma(times[0])))[0]
    for t, t_next in itertools.pairwise(times):
        probs = np.float64(step_law(params, t, t_next, rule))
        sigmas = noise.sigma(t), noise.sigma(t_next)
        law = law @ product_law(held(probs, given, graph, space, *sigmas))
    if denoise:
        probs, last = np.float64(final_law(params, t_min)), _clean if held is _noised else held
        law = space.embedded(law @ product_law(last(probs, given)))
    return law / law.sum() if held is _agreeing else law


def denoising_kernel(
    components: Components, params: Params, space: Space, t: float
) -> Float[np.ndarray, "S C"]:
    """Returns the law of the final denoising step from time t: [from, to a clean sequence]."""
    _, final_law = _compiled(components, space)
    return product_law(np.float64(final_law(params, t)))


def _clean(probs, given, *_):
    """The laws of positions [S, L, N] with given tokens held."""
    probs = probs.copy()
    for position, token in given.items():
        probs[:, position] = np.eye(probs.shape[-1])[token]
    return probs


def _agreeing(probs, given, *_):
    """The same with nothing but given tokens, each of the probability that it had."""
    return probs * _clean(np.ones_like(probs), given)


def _noised(probs, given, graph, space, sigma, sigma_next=None):
    """The same with given tokens noised, to sigma at the start, or from sigma to sigma_next."""
    probs = probs.copy()
    for position, token in given.items():
        if sigma_next is None:
            probs[:, position] = graph.transition(jnp.array(token), sigma)
        else:
            xt = jnp.asarray(space.states[:, position])
            x0 = jnp.full_like(xt, token)
            probs[:, position] = graph.bridge(xt, x0, sigma, sigma_next)
    return probs


def reverse_law(space: Space, noise: Noise, data: Law, t: float) -> Law:
    """Returns the law at time t of the exact reverse process, started like the samplers.

    It differs from p_t only as far as the limit differs from p_1; a sampler with exact scores
    differs from it by its discretisation alone.

    Args:
      space: all sequences.
      noise: the schedule.
      data: law of the data.
      t: time, in [0, 1]; at 0, the data.
    """
    with float64():
        sigma_1, sigma_t = (float(noise.sigma(jnp.float64(time))) for time in (1.0, t))
    sigma_t = sigma_t if t > 0 else 0.0
    last = data @ space.transition(sigma_1)
    weight = np.where(last > 0, space.limit() / np.where(last > 0, last, 1), 0)
    return (data @ space.transition(sigma_t)) * (space.transition(sigma_1 - sigma_t) @ weight)


def first_hitting_law(
    components: Components, params: Params, space: Space, start: Law | None = None
) -> Law:
    """Returns the law of the sequences that first hitting draws, one position a call.

    Exact for scores whose normalised ratios are the same at all noise, as the true ones are: they
    are taken at t = 1. In every order, all equally likely, in which the masked positions can go.

    Args:
      components: graph, which must be the absorbing one, noise and score model.
      params: of the score model.
      space: all sequences.
      start: law of the sequences before the first call; all masked by default.
    """
    graph, noise, model = components
    masked = space.states == graph.mask_id
    sigma = noise.sigma(jnp.ones(len(masked)))
    score = jnp.exp(model.apply(params, jnp.asarray(space.states), sigma))[..., : graph.num_tokens]
    token = np.float64(score / score.sum(-1, keepdims=True))
    one_of = masked / np.maximum(masked.sum(-1, keepdims=True), 1)
    law = space.limit() if start is None else start
    for _ in range(space.length):
        after = np.where(masked.any(-1), 0, law)  # what is full stays
        flow = (law[:, None] * one_of)[..., None] * token
        np.add.at(after, space.neighbours[..., : graph.num_tokens], flow)
        law = after
    return law


@functools.lru_cache(maxsize=32)
def _compiled(components, space):
    """The laws of every position after a step and after the final one, from every sequence."""
    graph, noise, model = components
    xt = jnp.asarray(space.states)

    def scores(params, t) -> tuple[Float[Array, "S"], Float[Array, "S L V"]]:
        t = jnp.broadcast_to(t, len(xt))
        return t, jnp.exp(model.apply(params, xt, noise.sigma(t)))

    @functools.partial(jax.jit, static_argnums=3)
    def step_law(params, t, t_next, rule):
        t, score = scores(params, t)
        t_next = jnp.broadcast_to(t_next, len(xt))
        return jump_probs(
            rule(graph, noise, xt, total_away(xt, score), t, t_next).weights(xt, score)
        )

    @jax.jit
    def final_law(params, t):
        t, score = scores(params, t)
        law = denoise_weights(graph, xt, total_away(xt, score), noise.sigma(t))
        return jump_probs(law.weights(xt, score)[..., : graph.num_tokens])

    return step_law, final_law
