"""What is measured about a training objective on a space that can be enumerated.

The number that it reports for every x_0, beside the likelihood of the model; where its expectation
has its minimum; and the gradients of batches beside that of the expectation.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float
from scipy.optimize import minimize

from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.objective import Objective
from sedd_jax.diffusion.output import Output, output_named
from sedd_jax.experiment.config import Config
from sedd_jax.experiment.state import run_keys
from sedd_jax.inference.score_based import ScoreBased, objective_named
from sedd_jax.verification.exact.objectives import (
    expected_losses,
    table_model,
    times_and_weights,
    true_logits,
)
from sedd_jax.verification.exact.reverse_process import ReverseProcess, base_distribution
from sedd_jax.verification.exact.space import Distribution, Space

NODES = 64  # of the quadrature over t
TIMES = (0.1, 0.5, 0.9)  # at which the minimum is looked for
DRAWS = 256  # gradients of a batch
DIRECTIONS = 32  # in which their mean is compared with the exact gradient


class Numbers(NamedTuple):
    """What an objective reports for every clean x_0, and -log p(x_0), in nats."""

    reported: Float[np.ndarray, "C"]
    nll: Float[np.ndarray, "C"]

    @property
    def gap(self) -> float:
        """The least excess over -log p."""
        return float((self.reported - self.nll).min())

    @property
    def total(self) -> float:
        """The sum of exp(-reported), at most 1 for a bound of any distribution."""
        return float(np.exp(-self.reported).sum())


class Minimum(NamedTuple):
    """What is found about the expected loss as a function of logits, one for every (x_t, y).

    Attributes:
      at_truth: largest derivative at the true logits.
      elsewhere: largest derivative half a nat away.
      normaliser: change of the loss when the ratios of a position are multiplied by a factor; None
        for a softmax, whose output does not change.
      distance: largest difference of log-ratios of the true ones and those of the minimum; 0 if
        the derivative vanishes at the true ones.
    """

    at_truth: float
    elsewhere: float
    normaliser: float | None
    distance: float

    @property
    def summary(self) -> str:
        """The minimum in a few words."""
        if self.distance > 0:
            return f"other ratios, by up to {self.distance:.2g} nats"
        if self.normaliser is not None and self.normaliser < 1e-9:
            return "true ratios up to a factor"
        return "true ratios"


class Gradients(NamedTuple):
    """Gradients of batches against the exact one.

    Attributes:
      bias: of their mean, in standard errors, the largest of several directions.
      variance: total variance of the gradient of one row, relative to the squared exact gradient.
    """

    bias: float
    variance: float


def random_process(config: Config, family: ScoreBased, space: Space) -> ReverseProcess:
    """Returns the process of random logits, one for every sequence, position and token.

    Args:
      config: the settings.
      family: graph and noise.
      space: all sequences.
    """
    output = output_named(config.model.output, space.graph)
    model = table_model(output, space, config.model.scale_by_sigma)
    params = model.init(run_keys(config.seed).init)
    return ReverseProcess(family._replace(model=model), params, space)


def numbers(objective: Objective, process: ReverseProcess, t_min: float) -> Numbers:
    """Returns the number that an objective reports, and the likelihood that it should bound.

    The number is the mean of the objective over t, plus the prior term and, in continuous time, the
    final step at t_min. The likelihood is that of the reverse process in continuous time, or of T
    Tweedie steps from 1 to 0 for an objective of T discrete times.

    Args:
      objective: the objective.
      process: graph, noise, network and weights.
      t_min: the smallest time.
    """
    family, params, space = process
    base = base_distribution(space, family.noise, space.uniform_data())
    times, weights = times_and_weights(objective, t_min, NODES)
    score_fn = functools.partial(family.model.score, params)

    @jax.jit
    def losses(times):
        def at(t):
            return expected_losses(objective, space, family.noise, score_fn, t)

        return jax.lax.map(at, times)

    mean = weights @ np.float64(losses(jnp.asarray(times, jnp.float32)))
    prior, final = process.ends(base, t_min)
    grid = getattr(objective, "grid", None)
    if grid is None:
        return Numbers((1 - t_min) * mean + prior + final, process.nll(base, t_min))
    return Numbers(mean + prior, process.chain_nll(base, grid))


def minimum(
    objective: Objective,
    output: Output | None,
    space: Space,
    noise: Noise,
    data: Distribution,
    *,
    seed: int = 0,
) -> Minimum:
    """Returns what the expected loss says about the true scores, in float64, at several times.

    Args:
      objective: the objective.
      output: what logits stand for; None for log-scores.
      space: all sequences.
      noise: the schedule.
      data: distribution of the data.
      seed: random seed of the logits that are not true.
    """
    rng, found = np.random.default_rng(seed), []
    with jax.enable_x64(True):
        xt = jnp.asarray(space.states)
        share = jnp.asarray(data[space.clean])

        model = table_model(output, space)

        def loss(logits, t):
            score_fn = functools.partial(model.score, {"logits": logits})
            return share @ expected_losses(objective, space, noise, score_fn, t)

        evaluate = jax.jit(jax.value_and_grad(loss))
        grid = getattr(objective, "grid", None)
        for t in TIMES:
            t = jnp.float64(t if grid is None else max(1, round(t * grid)) / grid)
            sigma = jnp.broadcast_to(noise.sigma(t), len(xt))
            truth = np.asarray(true_logits(output, space, jnp.asarray(data), xt, sigma))
            value, at_truth = evaluate(truth, t)
            off = truth + rng.normal(0, 0.5, truth.shape)
            factor = truth + rng.normal(0, 0.5, (*xt.shape, 1))
            at_truth = float(np.abs(at_truth).max())
            distance = 0.0
            if at_truth > 1e-8:
                distance = _distance(model, xt, lambda z, t=t: evaluate(z, t), truth, sigma)
            found.append(
                (
                    at_truth,
                    float(np.abs(evaluate(off, t)[1]).max()),
                    abs(float(evaluate(factor, t)[0] - value)),
                    distance,
                )
            )
    at_truth, elsewhere, normaliser, distance = zip(*found, strict=True)
    normaliser = max(normaliser) if output is None else None
    return Minimum(max(at_truth), min(elsewhere), normaliser, max(distance))


def _distance(model, xt, evaluate, truth, sigma):
    """The largest difference between the log-ratios of the truth and those of the minimum."""

    def value_and_gradient(flat):
        value, gradient = evaluate(flat.reshape(truth.shape))
        return float(value), np.float64(gradient).reshape(-1)

    found = minimize(
        value_and_gradient, truth.reshape(-1), jac=True, method="L-BFGS-B", options={"maxiter": 500}
    )
    true, other = (
        np.asarray(model.apply({"logits": jnp.asarray(logits)}, xt, sigma))
        for logits in (truth, found.x.reshape(truth.shape))
    )
    return float(np.abs(other - true).max())


def gradients(config: Config, process: ReverseProcess, data: Distribution) -> Gradients:
    """Returns how far the gradients of batches, drawn as in training, are from the exact one.

    Args:
      config: the settings of the training.
      process: graph, noise, model and the weights at which the gradient is taken.
      data: distribution of the data.
    """
    family, params, space = process
    objective, batch_size = objective_named(config.train.objective), config.train.batch_size
    times, weights = times_and_weights(objective, config.train.t_min, NODES)
    drawn = family.objective(config.train)
    states, share = jnp.asarray(space.states), jnp.asarray(data, jnp.float32)
    of_clean = jnp.asarray(data[space.clean], jnp.float32)
    keys = jax.random.split(run_keys(config.seed).evaluate, DRAWS)
    flat, unravel = ravel_pytree(params)

    def expectation(flat, t):
        score_fn = functools.partial(family.model.score, unravel(flat))
        losses = expected_losses(objective, space, family.noise, score_fn, t)
        return of_clean @ losses

    def of_batch(flat, key):
        data_key, time_key, noise_key, dropout_key = jax.random.split(key, 4)
        x0 = states[jax.random.choice(data_key, len(states), (batch_size,), p=share)]
        args = (drawn.learned.state,) if drawn.learned else ()
        draw = drawn.draw(time_key, noise_key, x0, *args)
        return drawn.loss(unravel(flat), draw, x0, dropout_key)

    @jax.jit
    def statistics(flat, times, weights):
        def add(total, each):
            t, weight = each
            return total + weight * jax.grad(expectation)(flat, t), None

        exact, _ = jax.lax.scan(add, jnp.zeros(flat.shape), (times, weights))
        signs = jax.random.rademacher(jax.random.key(1), (DIRECTIONS, flat.size), jnp.float32)
        directions = jnp.concatenate([exact[None], signs])

        def of_draw(key):
            error = jax.grad(of_batch)(flat, key) - exact
            return jnp.sum(error**2), directions @ error

        squares, along = jax.lax.map(of_draw, keys)
        return jnp.sum(exact**2), squares, along

    arrays = (jnp.asarray(x, jnp.float32) for x in (times, weights))
    signal, squares, along = (np.float64(x) for x in statistics(flat, *arrays))
    errors = along.mean(0) / (along.std(0, ddof=1) / np.sqrt(DRAWS))
    return Gradients(float(np.abs(errors).max()), float(batch_size * squares.mean() / signal))
