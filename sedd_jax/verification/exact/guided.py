"""Guided true scores on all sequences: models, the rates that they give, and their Gibbs moves."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sedd_jax.diffusion.euler import reverse_rate
from sedd_jax.diffusion.gibbs import gibbs_move
from sedd_jax.diffusion.guidance import Evidence, on_schedule, times_evidence
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.sampler import Clamp, Process
from sedd_jax.diffusion.score import DenseScore
from sedd_jax.inference.score_based import ScoreBased
from sedd_jax.model.score_model import ScoreModel, dense_model
from sedd_jax.verification.exact.moves import move_probs
from sedd_jax.verification.exact.reverse_process import ReverseProcess
from sedd_jax.verification.exact.scores import exact_model
from sedd_jax.verification.exact.space import Distribution, Space, product_distribution

TIMES = (0.1, 0.5, 0.9)  # at which rates are compared


class Conditioned(NamedTuple):
    """Data with a condition.

    Attributes:
      data: distribution of the data, p(x).
      given: the same given the condition, p(x | c).
    """

    data: Distribution
    given: Distribution

    def tilted(self, weight: float) -> Distribution:
        """Returns p(x | c) ** g p(x) ** (1 - g), normalised."""
        possible = self.given > 0
        given, data = (np.log(np.where(possible, p, 1)) for p in (self.given, self.data))
        tilt = np.where(possible, np.exp(weight * given + (1 - weight) * data), 0)
        return tilt / tilt.sum()

    def noised(self, space: Space, sigma: float) -> "Conditioned":
        """Returns the distributions after total noise sigma."""
        kernel = space.transition(sigma)
        return Conditioned(self.data @ kernel, self.given @ kernel)


@functools.lru_cache(maxsize=8)
def guided_model(space: Space, scaled: bool = True) -> ScoreModel:
    """Returns the model of guided ratios.

    Its parameters are {"data": [2, S], "weight": []}: p(x | c) and p(x), and g.

    Args:
      space: all sequences.
      scaled: on schedule, as samplers draw.
    """
    truth = exact_model(space)

    def score_fn(params, xt, sigma):
        first, other = (
            DenseScore(xt, truth.apply({"data": data}, xt, sigma)) for data in params["data"]
        )
        return first.guided(other, jnp.broadcast_to(params["weight"], len(xt)))

    def apply(params, xt, sigma, key=None):
        del key
        guided = functools.partial(score_fn, params)
        return (on_schedule(guided, space.graph) if scaled else guided)(xt, sigma).log_score

    return dense_model(lambda key: None, apply)


def guided_process(
    space: Space, noise: Noise, both: Conditioned, weight: float, *, scaled: bool = True
) -> ReverseProcess:
    """Returns the reverse process with guided true scores.

    Args:
      space: all sequences.
      noise: the schedule.
      both: the data, and the data given the condition.
      weight: g.
      scaled: on schedule, as samplers draw.
    """
    params = {"data": jnp.asarray([both.given, both.data]), "weight": jnp.asarray(weight, float)}
    return ReverseProcess(
        ScoreBased(space.graph, noise, guided_model(space, scaled)), params, space
    )


def evidence_model(space: Space, evidence: Evidence) -> ScoreModel:
    """Returns the model of the true ratios times evidence; its parameters are {"data": [S]}."""
    truth = exact_model(space)

    def apply(params, xt, sigma, key=None):
        del key

        def score_fn(xt, sigma):
            return DenseScore(xt, truth.apply(params, xt, sigma))

        times = times_evidence(score_fn, evidence, 1.0, "exact", space.graph.num_states)
        return on_schedule(times, space.graph)(xt, sigma).log_score

    return dense_model(lambda key: None, apply)


def sigma_at(noise: Noise, t: float) -> float:
    """Returns the total noise at a time."""
    return float(noise.sigma(jnp.float64(t)))


def rates_of(process: ReverseProcess, t: float) -> Float[np.ndarray, "S L V"]:
    """Returns the reverse rates of every change at a time, by unit noise."""
    states = jnp.asarray(process.space.states)
    sigma = jnp.full(len(states), sigma_at(process.family.noise, t))
    log_score = process.family.model.apply(process.params, states, sigma)
    return np.float64(reverse_rate(process.family.graph, states, jnp.exp(log_score)))


def residual(
    process: ReverseProcess,
    distribution: Callable[[float], Distribution],
    change: Callable[[Distribution, float], Distribution],
) -> float:
    """Returns how far the reverse process is from taking p_t to p_s, TV by unit noise.

    It takes it there if it changes p_t by the opposite of what more noise does.

    Args:
      process: the reverse process.
      distribution: maps total noise to p_t.
      change: maps p_t and total noise to the derivative of p_t in the noise.
    """
    worst = []
    for t in TIMES:
        sigma = sigma_at(process.family.noise, t)
        p_t = distribution(sigma)
        backward = process.space.generator(rates_of(process, t)) @ p_t
        worst.append(np.abs(backward + change(p_t, sigma)).sum() / 2)
    return max(worst)


def gibbs_kernel(process: ReverseProcess, t: float, position: int) -> Float[np.ndarray, "S S"]:
    """Returns a Gibbs move of one position at time t, [from, to]; a mask stays.

    Args:
      process: the reverse process of a dense model.
      t: the time.
      position: which position.
    """
    space, graph = process.space, process.family.graph
    states = jnp.asarray(space.states)
    chosen = jnp.broadcast_to(jnp.arange(space.length) == position, states.shape)
    if graph.absorbs:
        chosen &= states != graph.mask_id
    nothing = Clamp(jnp.zeros_like(states), jnp.zeros(states.shape, bool))
    of_rows = Process(graph, process.family.noise, None, nothing, t, None)
    move = gibbs_move(of_rows, states, chosen, 0.5)
    move = move._replace(active=move.active & chosen)
    score = jnp.exp(process.family.model.apply(process.params, move.xt, move.sigma.astype(float)))
    return product_distribution(np.asarray(move_probs(space, move, score)))
