"""Any training objective by enumeration: its expectation given x_0, and true outputs.

An objective is linear in the weights of a batch's rows. So with all x_t as rows, weighted by their
probability given x_0, its value is the expectation over x_t.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sedd_jax.diffusion.importance import NoisedBatch
from sedd_jax.diffusion.noise import Noise
from sedd_jax.diffusion.objective import Objective
from sedd_jax.diffusion.output import LeaveOneOut, Output
from sedd_jax.diffusion.score import DenseScore, ScoreFn
from sedd_jax.diffusion.times import quadrature_quantiles
from sedd_jax.model.context import NOTHING
from sedd_jax.model.score_model import ScoreModel
from sedd_jax.verification.exact.scores import exact_model
from sedd_jax.verification.exact.space import Space

LEAST_PROBABILITY = 1e-30  # in place of 0, so that a logit is finite


def reached(space: Space) -> Int[np.ndarray, "C R"]:
    """Returns the rows of `space.states` that noise can reach from every clean sequence."""
    with jax.ensure_compile_time_eval():
        drawn = np.asarray(space.graph.limit)[space.states] > 0
    same = space.states == space.states[space.clean][:, None]
    possible = (same | drawn).all(-1)
    rows = np.stack([np.flatnonzero(row) for row in possible])  # equally many, by symmetry
    return rows.astype(np.int32)


def expected_losses(
    objective: Objective,
    space: Space,
    noise: Noise,
    score_fn: ScoreFn,
    t: Float[Array, ""],
) -> Float[Array, "C"]:
    """Returns the expectation over x_t of an objective at time t, for every clean x_0.

    Args:
      objective: linear in the weights of rows.
      space: all sequences.
      noise: the schedule.
      score_fn: maps (x_t, sigma) to a `Score`.
      t: time.
    """
    graph, states = space.graph, jnp.asarray(space.states)

    def given(x0, rows):
        xt = states[rows]
        x0 = jnp.broadcast_to(x0, xt.shape)
        sigma = jnp.broadcast_to(noise.sigma(t), len(xt))
        kernel = jnp.take_along_axis(graph.transition(x0, sigma), xt[..., None], axis=-1)
        batch = NoisedBatch(jnp.broadcast_to(t, len(xt)), xt, len(xt) * kernel[..., 0].prod(-1))
        return objective(graph, noise, score_fn, batch, x0)

    clean = jnp.asarray(space.states[space.clean])
    return jax.lax.map(lambda each: given(*each), (clean, jnp.asarray(reached(space))))


def times_and_weights(
    objective: Objective, t_min: float, num_nodes: int
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Returns the times at which an objective is evaluated, and their weights, which add up to 1.

    All times of a discrete one; of others the nodes of a quadrature over [t_min, 1].

    Args:
      objective: the objective.
      t_min: the smallest time.
      num_nodes: of the quadrature.
    """
    grid = getattr(objective, "grid", None)
    if grid is not None:
        return np.arange(1, grid + 1) / grid, np.full(grid, 1 / grid)
    unit, weights = quadrature_quantiles(num_nodes)
    return t_min + (1 - t_min) * unit, weights


@functools.lru_cache(maxsize=32)  # equal models share compiled programs
def table_model(output: Output | None, space: Space, scaled: bool = False) -> ScoreModel:
    """Returns a score model whose parameters are the logits of every sequence at any noise.

    Args:
      output: what the logits stand for; None for log-scores.
      space: all sequences.
      scaled: lower log-scores by log expm1(sigma) + log(V - 1), as `config.model.scale_by_sigma`.
    """
    graph = space.graph

    def score(params, xt, sigma, key=None, lengths=None, context=NOTHING):
        del key, lengths, context
        logits = params["logits"][space.index(xt)]
        if output is not None:
            return output.dense(sigma, xt, logits)
        if scaled:
            normaliser = jnp.log(jnp.expm1(sigma)) + np.log(graph.num_states - 1)
            logits = logits - normaliser[:, None, None]
        at_xt = jax.nn.one_hot(xt, graph.num_states, dtype=bool)
        return DenseScore(xt, jnp.where(at_xt, 0, logits))

    def init(key):
        shape = (*space.states.shape, graph.num_states)
        return {"logits": jax.random.normal(key, shape)}

    def apply(params, xt, sigma, key=None):
        return score(params, xt, sigma, key=key).log_score

    return ScoreModel(init, apply, score)


def true_logits(
    output: Output | None,
    space: Space,
    data: Float[Array, "S"],
    xt: Int[Array, "B L"],
    sigma: Float[Array, "B"],
) -> Float[Array, "B L V"]:
    """Returns the logits of a network whose output is true.

    Log-ratios for None; else log p(x_0 | x_t) of every position, given all of x_t or all but the
    position itself, by Bayes' rule on whole sequences.

    Args:
      output: what the logits stand for.
      space: all sequences.
      data: distribution of x_0.
      xt: noised tokens.
      sigma: total noise.
    """
    if output is None:
        return exact_model(space).apply({"data": data}, xt, sigma)
    graph, states = space.graph, jnp.asarray(space.states)
    leaves_out = jnp.eye(space.length, dtype=bool) & isinstance(output, LeaveOneOut)
    is_token = jax.nn.one_hot(states, graph.num_states)

    def of_row(xt, sigma):
        kernel = graph.transition(jnp.arange(graph.num_states), sigma)[:, xt]  # p(x_t | x_0) [V, L]
        each = kernel[states, jnp.arange(space.length)]  # of x_0 and a position [S, L]
        evidence = jnp.where(leaves_out, 1, each[:, None]).prod(-1)  # [S, L], for every position
        joint = jnp.einsum("sl,slv->lv", data[:, None] * evidence, is_token, precision="highest")
        total = joint.sum(-1, keepdims=True)
        # x_t that the data cannot reach: anything
        probs = jnp.where(total > 0, joint / jnp.where(total > 0, total, 1), 1)
        return jnp.log(jnp.maximum(probs, LEAST_PROBABILITY))

    return jax.vmap(of_row)(xt, sigma)


@functools.lru_cache(maxsize=32)  # equal models share compiled programs
def true_model(output: Output | None, space: Space) -> ScoreModel:
    """Returns the score model with a true output; parameters are those of `exact_model`.

    Args:
      output: what its logits stand for; None for log-scores.
      space: all sequences.
    """
    exact = exact_model(space)
    if output is None:
        return exact

    def score(params, xt, sigma, key=None, lengths=None, context=NOTHING):
        del key, lengths, context
        return output.dense(sigma, xt, true_logits(output, space, params["data"], xt, sigma))

    return exact._replace(score=score)
