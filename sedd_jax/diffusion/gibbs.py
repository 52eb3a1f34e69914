"""Gibbs moves after the reverse steps: positions are drawn again, given the others.

A row of ratios, with 1 at x_t, is p_t(x_i = y, rest) / p_t(x_t): divided by its sum it is the
conditional distribution p_t(x_i = y | rest). Under the uniform graph a move draws positions from it
at the smallest noise, sigma(t_min). Under the absorbing graph a move masks positions of the clean
row and draws them from the denoiser. Drawing one position leaves the distribution of the data
(noised to t_min) unchanged: an exact corrector without any training.

A move draws every `spacing`-th position, the next move their right neighbours, and so on. It is
exact where these positions are independent given the others, as every second one is in a Markov
chain of clean tokens; elsewhere an approximation, since positions that depend on each other are
drawn from what each was given before. `sedd_jax.exact --config=configs/oracle_markov.py` measures
it.

References:
  Geman and Geman, Stochastic Relaxation, Gibbs Distributions, and the Bayesian Restoration of
    Images, 1984;
  Gonzalez et al., Parallel Gibbs Sampling: From Colored Fields to Thin Junction Trees, 2011: sets
    of positions that are independent given the others;
  the schedule is ours.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sedd_jax.diffusion.sampler import (
    Move,
    Process,
    denoising,
)
from sedd_jax.diffusion.score import StepWeights
from sedd_jax.diffusion.tweedie import Tweedie
from sedd_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Gibbs(Tweedie):
    """Tweedie steps with a part of the evaluations, then Gibbs moves with the others.

    Attributes:
      share: of the evaluations before the final one, those of Gibbs moves.
      spacing: the distance between two positions that a move draws, at least 2.
    """

    weighs_held_tokens = False  # the noise stays the same during a move
    share: float = 0.5
    spacing: int = 4

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.share < 1:
            raise BadInput(f"share must be in [0, 1), got {self.share}.")
        if self.spacing < 2:
            raise BadInput(f"spacing must be at least 2, got {self.spacing}.")

    def move(self, process: Process, xt: Int[Array, "B L"], step: Int[Array, ""]) -> Move:
        steps = self.num_steps(process.steps)
        predictions = max(steps - int(self.share * steps), 1)
        times = self.times(process, predictions)
        last = jnp.minimum(step, predictions - 1)
        prediction = self.prediction(process, xt, times[last], times[last + 1])
        turn = (step - predictions) % self.spacing
        chosen = jnp.broadcast_to(jnp.arange(xt.shape[1]) % self.spacing == turn, xt.shape)
        move = gibbs_move(process, xt, chosen, 1 / self.spacing)
        return _either(step < predictions, prediction, move)


def gibbs_move(
    process: Process, xt: Int[Array, "B L"], chosen: Bool[Array, "B L"], share: float
) -> Move:
    """Returns the move that draws chosen positions again, each given all positions not chosen.

    Args:
      process: the reverse process.
      xt: tokens, noised to t_min.
      chosen: positions to draw, unless they are held.
      share: about the share of the positions that are chosen; under the absorbing graph the
        network is given the noise at which this share is masked on average.
    """
    graph, rows = process.graph, len(xt)
    if graph.mask_id is not None:
        xt = jnp.where(chosen & ~process.clamp.held, graph.mask_id, xt)
        return denoising(process, xt, jnp.full(rows, -jnp.log1p(-share)))

    def weights(total):
        return StepWeights(jnp.ones_like(total), None, jnp.ones_like(total))

    sigma = process.noise.sigma(jnp.broadcast_to(process.t_min, rows))
    return Move(xt, sigma, process.changeable(xt) & chosen, weights)


def _either(first: Bool[Array, ""], one: Move, other: Move) -> Move:
    """The one move or the other, by one network evaluation."""

    def choose(a, b):
        return jnp.where(first, a, b)

    def weights(total):
        a, b = one.weights(total), other.weights(total)
        if a.cut is not None:  # a move of Gibbs cuts nothing
            b = b._replace(cut=jnp.zeros_like(b.scale))
        return jax.tree.map(choose, a, b)

    return Move(*map(choose, one[:3], other[:3]), weights)
