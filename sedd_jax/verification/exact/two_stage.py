"""The distribution of what samplers of two evaluations a step draw, without sampling.

A step is a matrix: the first part from every x to every y, and for every pair the second part to
every z, summed over y.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from sedd_jax.diffusion.categorical import jump_probs
from sedd_jax.diffusion.denoiser import tweedie_weights
from sedd_jax.diffusion.sampler import Process
from sedd_jax.diffusion.score import DenseScore, total_away
from sedd_jax.diffusion.second_order import Evaluation, ThetaTrapezoidal
from sedd_jax.verification.exact.reverse_process import ReverseProcess
from sedd_jax.verification.exact.space import Distribution, product_distribution


def two_stage_distribution(
    process: ReverseProcess, sampler: ThetaTrapezoidal, *, num_steps: int, t_min: float
) -> Distribution:
    """Returns the distribution after the steps of a sampler, the final one not taken.

    Exact, with the weights that the sampler itself computes, in JAX's default precision.

    Args:
      process: the reverse process of a score model.
      sampler: of two evaluations a step.
      num_steps: its steps.
      t_min: the time at which they end.
    """
    graph, noise, model = process.family
    step, current = _step(graph, model, process.space, sampler), process.space.limit()
    grid = Process(graph, noise, None, None, t_min, None)
    for t, t_next in itertools.pairwise(sampler.times(grid, num_steps)):
        current = current @ np.asarray(step(process.params, sampler.sigmas(noise, t, t_next)))
    return current


@functools.lru_cache(maxsize=32)
def _step(graph, model, space, sampler):
    """The compiled matrix [from, to] of a step: (params, total noises) -> [S, S]."""
    states = jnp.asarray(space.states)
    count = len(states)

    def step(params, sigmas):
        sigmas = jnp.broadcast_to(sigmas[:, None], (3, count))
        log_scores = [model.apply(params, states, sigma) for sigma in sigmas[:2]]
        total = total_away(states, jnp.exp(log_scores[0]))
        weights = tweedie_weights(graph, states, total, sigmas[0] - sigmas[1])
        first = product_distribution(_probs(states, log_scores[0], weights))

        xs, ys = jnp.repeat(jnp.arange(count), count), jnp.tile(jnp.arange(count), count)
        before, after = (
            Evaluation(states[rows], DenseScore(states[rows], log_score[rows]))
            for rows, log_score in zip((xs, ys), log_scores, strict=True)
        )
        sigmas = jnp.repeat(sigmas, count, axis=1)
        start, score, weights = sampler.second(graph, sigmas, before, total[xs], after)
        weights = weights(total_away(start, jnp.exp(score.log_score)))
        stays = jax.nn.one_hot(start, graph.num_states)
        active = graph.limit[start][..., None] > 0
        probs = jnp.where(active, _probs(start, score.log_score, weights), stays)
        second = product_distribution(probs).reshape(count, count, count)
        paths = first[..., None] * second
        return jnp.where(first[..., None] > 0, paths, 0).sum(1)  # others have no meaning

    return jax.jit(step)


def _probs(xt, log_score, weights):
    return jump_probs(weights.weights(xt, jnp.exp(log_score)))
