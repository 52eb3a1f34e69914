"""What samplers draw on a space that can be enumerated: the distribution after every step.

A step is a matrix over all sequences, computed from the `Move` of the sampler itself.
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sedd_jax.diffusion.categorical import jump_probs
from sedd_jax.diffusion.renoising import Renoising
from sedd_jax.diffusion.sampler import Clamp, GridSampler, Move, Process
from sedd_jax.diffusion.score import total_away
from sedd_jax.inference.sampling import sampler_named
from sedd_jax.verification.exact.reverse_process import ReverseProcess, clamped
from sedd_jax.verification.exact.space import Distribution, Space, product_distribution


def drawn_distribution(
    process: ReverseProcess,
    sampler: str,
    *,
    steps: int,
    t_min: float,
    given: Mapping[int, int] = MappingProxyType({}),
) -> Distribution:
    """Returns the distribution of the sequences that a sampler draws.

    Args:
      process: the model.
      sampler: the name of a sampler on a grid of times whose steps make one evaluation.
      steps: those before the final one.
      t_min: the time at which the steps end.
      given: tokens that are clamped, by position.
    """
    space, method = process.space, sampler_named(sampler)
    start = np.tile(np.float64(space.graph.limit), (1, space.length, 1))
    current = product_distribution(clamped(start, given))[0]
    for step in range(method.num_steps(steps)):
        probs = _step_probs(process.family, space, method, steps, t_min, tuple(given.items()))(
            process.params, step
        )
        current = current @ product_distribution(clamped(np.float64(probs), given))
    return space.extend(current @ process.denoising_kernel(t_min, given))


@functools.lru_cache(maxsize=64)
def _step_probs(family, space: Space, sampler: GridSampler, steps, t_min, given):
    """A compiled function of (params, step): the distributions of positions, [S, L, V]."""
    states = jnp.asarray(space.states)
    held = jnp.zeros(states.shape, bool)
    for position, _ in given:
        held = held.at[:, position].set(True)
    process = Process(family.graph, family.noise, None, Clamp(states, held), t_min, steps)

    def after(params, move):
        score = jnp.exp(family.model.apply(params, move.xt, move.sigma))
        return move_probs(space, move, score)

    def probs(params, step):
        if not isinstance(sampler, Renoising):
            return after(params, sampler.move(process, states, step))
        mixture = 0
        for share, far in ((sampler.far, True), (1 - sampler.far, False)):
            move, added = sampler.far_move(process, states, step, jnp.full(states.shape, far))
            noise = family.graph.transition(jnp.arange(family.graph.num_states), added[0, 0])
            mixture = mixture + share * jnp.matmul(after(params, move), noise, precision="highest")
        return mixture

    return jax.jit(probs)


def move_probs(space: Space, move: Move, score: Float[Array, "S L V"]) -> Float[Array, "S L V"]:
    """Returns the distribution of every position after a move.

    Args:
      space: all sequences.
      move: of every sequence of the space.
      score: ratio estimates for what the move evaluates.
    """
    total = jnp.where(move.active, total_away(move.xt, score), 0)
    probs = jump_probs(move.weights(total).weights(move.xt, score))
    stays = jax.nn.one_hot(move.xt, space.graph.num_states, dtype=probs.dtype)
    return jnp.where(move.active[..., None], probs, stays)
