"""Metropolis-Hastings moves with ratios: how concrete score matching draws its samples.

A position and a token are proposed uniformly, and accepted with probability min(1, ratio), where
the ratio is that of the proposed sequence to the current one. With true ratios the chain leaves p_t
as it is. Under the absorbing graph a network's ratios at a token that is no mask mean nothing: the
ratio of two states of a position is that of their ratios to the mask.

References:
  Meng et al., Concrete Score Matching: Generalized Score Matching for Discrete Data, 2022 (arXiv
    2211.00802), Section 4.
  Hastings, Monte Carlo Sampling Methods Using Markov Chains and Their Applications, 1970.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sedd_jax.diffusion.noise import Noise
from sedd_jax.display.table import Table
from sedd_jax.verification.exact.reverse_process import ReverseProcess
from sedd_jax.verification.exact.scores import Scores, exact_ratios
from sedd_jax.verification.exact.space import Distribution, Space, total_variation
from sedd_jax.verification.report import Claim, Section

TIMES = (0.02, 0.1, 0.5, 0.9)


def metropolis_kernel(space: Space, log_score: Scores) -> Float[np.ndarray, "S S"]:
    """Returns the chain of one move, [from, to].

    Args:
      space: all sequences.
      log_score: of every sequence.
    """
    states, num_states = space.states, space.graph.num_states
    rows, positions = np.arange(len(states))[:, None], np.arange(space.length)
    log_score = np.array(log_score, float)
    log_score[rows, positions, states] = 0
    if space.graph.absorbs:
        mask = space.graph.mask_id
        log_score = log_score[space.neighbours[..., mask], positions]
        log_score = log_score - log_score[rows, positions, states][..., None]
    accepted = np.minimum(1, np.exp(log_score)) / (space.length * (num_states - 1))
    accepted[rows, positions, states] = 0
    kernel = np.zeros((len(states),) * 2)
    np.add.at(kernel, (rows[..., None], space.neighbours), accepted)
    return kernel + np.diag(1 - kernel.sum(-1))


def stationary(kernel: Float[np.ndarray, "S S"]) -> Distribution:
    """Returns the distribution that an irreducible chain leaves as it is."""
    equations = np.vstack([kernel.T - np.eye(len(kernel)), np.ones(len(kernel))])
    right = np.append(np.zeros(len(kernel)), 1.0)
    return np.linalg.lstsq(equations, right, rcond=None)[0]


def moves_to_halve(kernel: Float[np.ndarray, "S S"]) -> float:
    """Returns after how many moves the slowest deviation from the stationary one halves."""
    second = np.sort(np.abs(np.linalg.eigvals(kernel)))[-2]
    return float(np.log(0.5) / np.log(second))


def check_metropolis(
    space: Space, noise: Noise, data: Distribution, trained: ReverseProcess
) -> Section:
    """Returns what Metropolis-Hastings moves draw, with true ratios and with those of a network.

    Args:
      space: all sequences.
      noise: the schedule.
      data: distribution of the data.
      trained: a network trained on the data.
    """
    (family, params, _), errors, rows = trained, [], []
    log_scores = jax.jit(family.model.apply)
    for t in TIMES:
        sigma = noise.sigma(jnp.full(len(space.states), t))
        marginal = data @ space.transition(float(sigma[0]))
        with np.errstate(divide="ignore"):  # a ratio of 0
            true = metropolis_kernel(space, np.log(exact_ratios(space, marginal)))
        errors.append(total_variation(marginal, marginal @ true))
        learned = stationary(metropolis_kernel(space, log_scores(params, space.states, sigma)))
        rows.append((t, moves_to_halve(true), total_variation(learned, marginal)))
    table = Table(
        "Metropolis-Hastings moves at several noises",
        ("t", "moves to halve an error, true ratios", "TV to p_t, ratios of the network"),
        rows,
    )
    claim = Claim("true ratios: TV of p_t after a move to p_t", max(errors), "<=", 1e-12)
    return Section("Metropolis-Hastings with ratios", [claim], [table])
